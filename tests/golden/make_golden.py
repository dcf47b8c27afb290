#!/usr/bin/env python3
"""Writes the golden files of this folder: small random models with the logits of a plain PyTorch
forward, and tokenizer cases with the ids of llama.cpp. See README.md for what is in them.

    make_golden.py              # everything, into this folder
    make_golden.py --only models --out /somewhere

Needs the packages torch, numpy, gguf, tokenizers and llama-cpp-python. Nothing here runs in CI.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys

import gguf
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tools"))
import llama_cpp_peer  # noqa: E402
import make_random_gguf as mrg  # noqa: E402
import vocabularies  # noqa: E402
from torch_decoder import TorchDecoder, difference  # noqa: E402

PROMPT_TOKENS = 24
GREEDY_TOKENS = 16
# The continuation must not hang on rounding: at every step the best logit leads by this much.
MIN_GREEDY_GAP = 0.05
# A model passes as a golden only if each mistake that applies to it moves the logits by this much.
MIN_SENSITIVITY = 2e-2


def llama3_rope_factors(head_dim: int, base: float, factor=8.0, low=1.0, high=4.0, original=32):
    """The divisors that Llama 3.1 models carry in rope_freqs.weight, for a short original context."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * base ** (i / head_dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1.0 / ((1 - smooth) / factor + smooth))
    return tuple(factors)


@dataclasses.dataclass(frozen=True)
class GoldenModel:
    name: str
    shape: mrg.ModelShape
    dtype: str
    note: str
    mistakes: tuple[str, ...]  # those of torch_decoder.MISTAKES that this model must expose


def golden_models() -> list[GoldenModel]:
    llama, qwen2, qwen3 = (mrg.PRESETS[f"tiny-{a}"] for a in ("llama", "qwen2", "qwen3"))
    rope = ("rope_pairing", "rope_base", "query_position")
    common = (*rope, "head_mapping", "causal")
    models = [
        GoldenModel(f"llama_{d.lower()}", llama, d, "4 query heads on 2 kv heads", common)
        for d in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
    ]
    models += [
        GoldenModel("qwen2_f32", qwen2, "F32", "QKV biases, neox RoPE", (*common, "bias")),
        GoldenModel("qwen3_f32", qwen3, "F32", "q/k norms, head_dim 32 with hidden 64, tied",
                    (*common, "qk_norm", "attention_scale")),
        GoldenModel("qwen3_q8_0", qwen3, "Q8_0", "the same in Q8_0",
                    (*common, "qk_norm", "attention_scale")),
        GoldenModel(
            "llama_rope_factors_f16",
            dataclasses.replace(llama, n_head=2, n_head_kv=1, head_dim=32, rope_base=500000.0,
                                rope_factors=llama3_rope_factors(32, 500000.0)),
            "F16", "rope_freqs.weight as in Llama 3.1, 2 query heads on 1 kv head",
            (*rope, "causal", "rope_factors")),
        GoldenModel("llama_mixed", mrg.PRESETS["tiny-llama-256"], "MIXED",
                    "Q4_K with Q5_K, Q6_K and TQ2_0 for some matrices; one layer, hidden 256", common),
        GoldenModel(
            "llama_linear_f16",
            dataclasses.replace(llama, n_layer=3, n_head=6, tied=True, rms_eps=1e-2,
                                rope_base=5000.0, linear_rope_factor=4.0),
            "F16", "linear RoPE scaling by 4, tied, eps 1e-2, 3 layers, q_dim 96 with hidden 64",
            (*common, "rope_scale", "rms_eps", "attention_scale")),
    ]
    return models


def prompt_for(shape: mrg.ModelShape, bos: int | None) -> list[int]:
    rng = np.random.default_rng(2024)
    tokens = rng.integers(3, shape.vocab - 3, PROMPT_TOKENS).tolist()
    if bos is not None:
        tokens[0] = bos
    return tokens


def write_golden_model(model: GoldenModel, out: pathlib.Path) -> dict:
    shape = model.shape
    if shape.arch == "llama":
        vocabulary = vocabularies.train_spm(shape.vocab)
    else:
        vocabulary = vocabularies.train_bpe("qwen2", shape.vocab)
    prompt = prompt_for(shape, vocabulary.bos if vocabulary.add_bos else None)
    path = out / f"{model.name}.gguf"
    for seed in range(1, 2000):
        mrg.write_model(path, shape, model.dtype, seed, vocabulary, f"golden {model.name}")
        greedy, gap = TorchDecoder(path).greedy(prompt, GREEDY_TOKENS)
        if gap >= MIN_GREEDY_GAP and len(set(greedy)) >= GREEDY_TOKENS // 2:
            break
    else:
        raise RuntimeError(f"{model.name}: no seed with a clear greedy continuation")

    expected = TorchDecoder(path).forward(prompt).numpy()
    yardsticks = {
        "float32": dict(dtype=torch.float32),
        "float32_kv_f16": dict(dtype=torch.float32, kv=torch.float16),
        "float32_kv_bf16": dict(dtype=torch.float32, kv=torch.bfloat16),
        "activations_f16": dict(dtype=torch.float32, activations="F16"),
        "activations_bf16": dict(dtype=torch.float32, activations="BF16"),
        "activations_q8_0": dict(dtype=torch.float32, activations="Q8_0"),
    }
    errors = {
        name: difference(TorchDecoder(path, **options).forward(prompt).numpy(), expected)
        for name, options in yardsticks.items()
    }
    with llama_cpp_peer.Peer(path, kv_dtype="f32") as peer:
        errors["llama_cpp"] = difference(peer.logits(prompt), expected)
    mistakes = {}
    for mistake in model.mistakes:
        wrong = TorchDecoder(path, mistake=mistake).forward(prompt).numpy()
        mistakes[mistake] = difference(wrong, expected)["rel_l2"]
        if mistakes[mistake] < MIN_SENSITIVITY:
            raise RuntimeError(f"{model.name}: {mistake} moves the logits by {mistakes[mistake]}")
    expected.astype("<f4").tofile(out / f"{model.name}.logits.bin")
    print(f"{model.name}: seed {seed}, gap {gap:.3f}, float32 {errors['float32']['rel_l2']:.1e}, "
          f"llama.cpp {errors['llama_cpp']['rel_l2']:.1e}, smallest mistake "
          f"{min(mistakes.values()):.1e}, {path.stat().st_size} bytes")
    rounded = lambda table: {k: float(f"{v:.3e}") for k, v in table.items()}  # noqa: E731
    return {
        "name": model.name,
        "file": path.name,
        "logits": f"{model.name}.logits.bin",
        "dtype": model.dtype,
        "note": model.note,
        "seed": seed,
        "shape": {k: v for k, v in dataclasses.asdict(shape).items() if k != "rope_factors"},
        "prompt": prompt,
        "greedy": greedy,
        "greedy_smallest_gap": round(gap, 4),
        "logits_rms": round(float(np.sqrt(np.mean(expected**2))), 4),
        "errors": {name: rounded(error) for name, error in errors.items()},
        "mistakes_rel_l2": rounded(mistakes),
    }


def write_vocabulary(path: pathlib.Path, vocabulary: mrg.Vocabulary, name: str) -> None:
    """A GGUF file with a tokenizer and no tensors."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("model")
    writer.add_name(name)
    writer.add_vocab_size(len(vocabulary.tokens))
    mrg.add_vocabulary(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def write_golden_tokenizer(name: str, vocabulary: mrg.Vocabulary, out: pathlib.Path) -> None:
    path = out / f"tokenizer_{name}.gguf"
    write_vocabulary(path, vocabulary, f"golden tokenizer {name}")
    cases = []
    with llama_cpp_peer.Peer(path, vocab_only=True) as peer:
        for text in vocabularies.STRINGS:
            for add_special, parse_special in ((True, True), (False, False)):
                ids = peer.tokenize(text.encode(), add_special, parse_special)
                cases.append({"text": text, "add_special": add_special,
                              "parse_special": parse_special, "ids": ids})
        pieces = [peer.token_bytes(i).hex() for i in range(len(vocabulary.tokens))]
    if vocabulary.model == "gpt2":
        second = vocabularies.byte_level_ids(vocabulary)
        for case in cases:
            plain = not case["add_special"] and not case["parse_special"]
            if plain and second.get(case["text"], case["ids"]) != case["ids"]:
                raise RuntimeError(f"{name}: llama.cpp and tokenizers differ on {case['text']!r}")
    data = {
        "vocabulary": path.name,
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "bos": vocabulary.bos,
        "eos": vocabulary.eos,
        "produced_by": f"llama-cpp-python {llama_cpp_peer.version()}",
        "cases": cases,
        "token_bytes_hex": pieces,
    }
    lines = json.dumps(data, ensure_ascii=True, indent=None)
    lines = lines.replace('{"text"', '\n{"text"').replace('"token_bytes_hex"', '\n"token_bytes_hex"')
    (out / f"tokenizer_{name}.json").write_text(lines + "\n")
    used = {i for case in cases for i in case["ids"]}
    print(f"tokenizer {name}: {len(cases)} cases, {len(used)} of {len(pieces)} tokens used, "
          f"{path.stat().st_size} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("models", "tokenizers"))
    parser.add_argument("--out", type=pathlib.Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.only != "tokenizers":
        entries = [write_golden_model(model, args.out) for model in golden_models()]
        manifest = {"produced_by": f"PyTorch {torch.__version__}, float64", "models": entries}
        text = json.dumps(manifest, indent=1)
        # Lists of ids on one line.
        text = re.sub(r"\[[\d,\s]+\]", lambda m: "[" + " ".join(m[0][1:-1].split()) + "]", text)
        (args.out / "models.json").write_text(text + "\n")
    if args.only != "models":
        write_golden_tokenizer("spm", vocabularies.train_spm(640, extras=True), args.out)
        for pre in vocabularies.PATTERNS:
            name = pre.replace("-", "_")
            write_golden_tokenizer(name, vocabularies.train_bpe(pre, 640, extras=True), args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
