"""Measures the demo model from the GGUF file alone: sums, recall by length, stories.

Model and tokenizer are read back from the file and every prompt goes through the tokenizer as text,
so that what is measured is what another program finds in the file. An answer counts as right when
greedy decoding gives exactly its tokens and then </s>.
"""

import argparse
import json
import os
import pathlib
import random
import re

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # do not spin while others use the cores

import torch

import corpus
import gguf_file
import make_eval
from tokenizer import BOS_ID, EOS_ID

SEED = 99
BATCH_TOKENS = 16384


def answered(model, tokenizer, questions):
    """For each (prompt, answer): whether greedy decoding gives the answer, then </s>.

    Greedy decoding gives the answer exactly when every answer token is the best one after the
    tokens before it, so one forward pass per question is enough.
    """
    by_length = {}
    for index, (prompt, answer) in enumerate(questions):
        ids = tokenizer.encode(prompt, add_bos=True)
        wanted = tokenizer.encode(answer) + [EOS_ID]
        by_length.setdefault((len(ids), len(wanted)), []).append((index, ids + wanted))
    right = [False] * len(questions)
    for (_, wanted_count), rows in by_length.items():
        size = max(1, BATCH_TOKENS // len(rows[0][1]))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            ids = torch.tensor([ids for _, ids in batch])
            with torch.no_grad():
                states = model.hidden_states(ids[:, :-1])[:, -wanted_count:]
                best = model.logits(states).argmax(-1)
            for (index, _), good in zip(batch, (best == ids[:, -wanted_count:]).all(1).tolist()):
                right[index] = good
    return right


def generate(model, tokenizer, prompt, limit=120, temperature=0.0, seed=0):
    """Continues `prompt` until </s> or `limit` tokens."""
    ids = tokenizer.encode(prompt, add_bos=True)
    generator = torch.Generator().manual_seed(seed)
    given = len(ids)
    while len(ids) - given < limit:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        if temperature == 0.0:
            token = int(logits.argmax())
        else:
            weights = torch.softmax(logits / temperature, -1)
            token = int(torch.multinomial(weights, 1, generator=generator))
        if token == EOS_ID:
            break
        ids.append(token)
    return tokenizer.decode(ids[given:]), len(ids) - given < limit


def story_figures(model, tokenizer, count):
    """Shares of sampled stories that end by themselves, and that keep to their names.

    Names are kept when the story names its hero again and nobody else but one friend.
    """
    names = {name for group in corpus.NAMES.values() for name in group}
    rng = random.Random(SEED)
    ended = kept = 0
    for seed in range(count):
        kind = rng.choice(list(corpus.NAMES))
        hero = rng.choice(corpus.NAMES[kind])
        text, complete = generate(
            model,
            tokenizer,
            f"Once there was a {kind} named {hero}.",
            temperature=0.8,
            seed=seed,
        )
        found = set(re.findall("[A-Z][a-z]+", text)) & names
        ended += complete
        kept += hero in found and len(found | {hero}) <= 2
    return ended / count, kept / count


def share(flags):
    """Share of true flags in per cent."""
    return 100.0 * sum(flags) / len(flags)


def evaluate(path, recall_count, story_count, cases):
    """Prints every figure and returns them as a dictionary."""
    model, tokenizer = gguf_file.read(path)
    assert tokenizer.encode("23+45=", add_bos=True)[0] == BOS_ID
    figures = {"bytes": path.stat().st_size}
    for name, pairs in zip(["train", "held_out"], corpus.split_sums()):
        texts = [corpus.sum_text(a, b) for a, b in pairs]
        questions = [(t[: t.index("=") + 1], t[t.index("=") + 1 :]) for t in texts]
        right = answered(model, tokenizer, questions)
        figures[f"sum_{name}"] = share(right)
        figures[f"sum_{name}_wrong"] = [t for t, good in zip(texts, right) if not good][:10]
    rng = random.Random(SEED)
    for length in make_eval.RECALL_LENGTHS:
        drawn = [make_eval.recall_case(rng, length) for _ in range(recall_count)]
        questions = [(case.prompt(), case.queries[0][1]) for case in drawn]
        figures[f"recall_{length}"] = share(answered(model, tokenizer, questions))
    if cases:
        entries = json.loads(cases.read_text())
        right = answered(model, tokenizer, [(e["prompt"], e["answer"]) for e in entries])
        for kind in sorted({(e["task"], e["context_tokens"]) for e in entries}):
            flags = [r for e, r in zip(entries, right) if (e["task"], e["context_tokens"]) == kind]
            figures[f"cases_{kind[0]}_{kind[1]}"] = share(flags)
    if story_count:
        figures["story_ended"], figures["story_names_kept"] = story_figures(
            model, tokenizer, story_count
        )
    for name, value in figures.items():
        print(f"{name}: {value}")
    for prompt in ["Once there was a girl named Mia.", "One sunny day, Tom", "Once upon a time,"]:
        print(prompt + generate(model, tokenizer, prompt)[0])
    return figures


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path, help="GGUF file")
    parser.add_argument("--recall-count", type=int, default=200, help="recalls at each length")
    parser.add_argument("--story-count", type=int, default=50)
    parser.add_argument("--cases", type=pathlib.Path, help="demo_eval.json to ask as well")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures to this file")
    arguments = parser.parse_args()
    figures = evaluate(
        arguments.model, arguments.recall_count, arguments.story_count, arguments.cases
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
