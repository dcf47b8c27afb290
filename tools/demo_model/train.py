"""Trains the demo model on the CPU; see README.md for the command and the results."""

import argparse
import math
import os
import pathlib
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # do not spin while others use the cores

import torch
from torch.nn import functional as F

import batches
import tokenizer as tokenizer_module
from model import Config, Model

SEED = 7
SUM_ROWS = 128
STORY_ROWS = 10
RECALL_TOKENS = 4096
STORY_WEIGHT = 0.3
WARMUP_STEPS = 50
DECAY_STEPS = 150
MATRIX_RATE = 0.02
VECTOR_RATE = 4e-3
REPORT_STEPS = 20
CHECKPOINT_STEPS = 50

# Up to which step, and with which weights, each recall length is drawn; the last to the end.
CURRICULUM = [
    (96, {8: 1, 16: 2, 32: 2}),
    (256, {16: 1, 32: 2, 64: 3}),
    (480, {64: 1, 128: 3, 256: 2}),
    (800, {64: 1, 128: 1, 256: 2, 512: 3}),
    (math.inf, {64: 1, 128: 1, 256: 2, 512: 3, 1024: 5}),
]
# Up to this step, with this weight, the first block is asked directly for the key of
# the line at values and question marks. Without it the look-up stays undiscovered for long: the
# step that carries the key along the line and the step that compares keys are useless apart.
LOOK_BACK_STEPS = 640
LOOK_BACK_WEIGHT = 0.5


def recall_length(step, rng):
    """A recall length for this step."""
    weights = next(weights for until, weights in CURRICULUM if step < until)
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def make_optimizers(model):
    """Muon for the matrices of the blocks, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embd" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embd" in name]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(others, lr=VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step, steps):
    """Linear warm-up, constant, linear decay to zero."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / DECAY_STEPS)


def task_loss(model, inputs, targets, look_back=None):
    """Mean cross entropy over the counted targets, and the share of them guessed right.

    With look_back, the loss of the first block against these targets is added.
    """
    counted = targets != batches.IGNORED
    states = model.block_states(inputs)
    logits = model.logits(model.output_norm(states[-1][counted]))
    loss = F.cross_entropy(logits, targets[counted])
    right = (logits.argmax(-1) == targets[counted]).float().mean().item()
    figures = (loss.item(), right)
    if look_back is not None:
        counted = look_back != batches.IGNORED
        first = states[0][counted]
        logits = model.logits(F.rms_norm(first, first.shape[-1:]))
        loss = loss + LOOK_BACK_WEIGHT * F.cross_entropy(logits, look_back[counted])
    return loss, figures


def draw_batches(maker, step):
    """The batches of one step: name -> (batch, weight of its loss)."""
    length = recall_length(step, maker.rng)
    return {
        "sum": (maker.sums(SUM_ROWS), 1.0),
        f"recall{length}": (maker.recall(RECALL_TOKENS // length, length), 1.0),
        "story": (maker.stories(STORY_ROWS), STORY_WEIGHT),
    }


def train_step(model, optimizers, parts, with_look_back):
    """One update of the weights; returns name -> (loss, share right)."""
    figures = {}
    for name, (batch, weight) in parts.items():
        loss, figures[name] = task_loss(model, *(batch if with_look_back else batch[:2]))
        (weight * loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return figures


def save(path, model, optimizers, counters):
    """Writes a checkpoint; one that is interrupted leaves the older one in place."""
    state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state | counters, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def restore(path, model, optimizers):
    """Loads a checkpoint, if there is one, and returns the counters."""
    if not path.exists():
        return {"step": 0, "seconds": 0.0, "tokens": 0}
    state = torch.load(path)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"]):
        optimizer.load_state_dict(saved)
    return {name: state[name] for name in ("step", "seconds", "tokens")}


def train(steps, threads, out):
    """Runs or resumes the training, and leaves checkpoint.pt in the folder `out`."""
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    tokenizer = tokenizer_module.build()
    model = Model(Config(vocabulary=len(tokenizer)))
    optimizers = make_optimizers(model)
    base_rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    path = out / "checkpoint.pt"
    counters = restore(path, model, optimizers)
    # Only now: restoring puts new groups, with the rates of the checkpoint, in place of the old.
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameter_count = sum(p.numel() for p in model.parameters())
    print(f"parameters {parameter_count}, step {counters['step']}/{steps}")

    start, averages = time.monotonic() - counters["seconds"], {}
    for step in range(counters["step"], steps):
        for group, base in zip(groups, base_rates):
            group["lr"] = base * rate_factor(step, steps)
        # The step seeds its own data, so that a resumed run sees what an unbroken one does.
        parts = draw_batches(batches.BatchMaker(tokenizer, f"{SEED}/{step}"), step)
        figures = train_step(model, optimizers, parts, step < LOOK_BACK_STEPS)
        for name, new in figures.items():
            old = averages.get(name, new)
            averages[name] = tuple(0.9 * a + 0.1 * b for a, b in zip(old, new))
        tokens = counters["tokens"] + sum(batch[0].numel() for batch, _ in parts.values())
        seconds = time.monotonic() - start
        counters = {"step": step + 1, "seconds": seconds, "tokens": tokens}
        if (step + 1) % REPORT_STEPS == 0 or step + 1 == steps:
            line = "  ".join(f"{n} {v[0]:.3f}/{v[1]:.3f}" for n, v in sorted(averages.items()))
            print(f"{step + 1} {seconds:.0f}s {tokens / seconds:.0f} tokens/s  {line}", flush=True)
        if (step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == steps:
            save(path, model, optimizers, counters)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1350)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of checkpoints")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments.steps, arguments.threads, arguments.out)


if __name__ == "__main__":
    main()
