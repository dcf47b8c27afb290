#!/usr/bin/env python3
"""Writes a GGUF model file with random weights, a valid tokenizer and a chosen shape.

The weights are seeded, so the same arguments give the same file. They are meant for speed
measurements (`tinyllama-1.1b`) and for numerical comparisons (`tiny-*`), not for reading.

    make_random_gguf.py --preset tinyllama-1.1b --dtype F16 -o tinyllama-f16.gguf
    make_random_gguf.py --preset tiny-qwen3 --dtype F32 --seed 7 -o tiny.gguf
    make_random_gguf.py --list

Every matrix is N(0, 1/columns), so activations stay near unit size through the layers, and takes
the chosen type (also the embedding and the output matrix); vectors (norms, biases, RoPE factors)
stay F32, as in files made by llama.cpp. Q4_K_M is Q4_K with Q6_K for attn_v, ffn_down and the
output matrix; MIXED has all of Q4_K, Q5_K, Q6_K and TQ2_0. Needs the packages `numpy` and `gguf`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import os
import sys
import time
import zlib

import gguf
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import super_blocks  # noqa: E402

DTYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "TQ2_0", "Q4_K_M", "MIXED")
# Types of single matrices by a part of their names, in mixtures of types.
_Q4_K_M = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "output.weight": "Q6_K"}
_MIXTURES = {
    "Q4_K_M": ("Q4_K", {**_Q4_K_M}),
    "MIXED": ("Q4_K", {**_Q4_K_M, "ffn_gate": "Q5_K", "attn_k": "Q5_K", "ffn_up": "TQ2_0"}),
}
_FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "Q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "Q4_K": gguf.LlamaFileType.MOSTLY_Q4_K_S,
    "Q5_K": gguf.LlamaFileType.MOSTLY_Q5_K_S,
    "Q6_K": gguf.LlamaFileType.MOSTLY_Q6_K,
    "TQ2_0": gguf.LlamaFileType.MOSTLY_TQ2_0,
    "Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "MIXED": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
_CHUNK_ELEMENTS = 4 << 20  # elements generated and quantised at once, per thread (16 MiB of f32)


@dataclasses.dataclass(frozen=True)
class ModelShape:
    """The hyperparameters of a decoder, in the terms of the GGUF keys."""

    arch: str  # llama, qwen2 or qwen3
    n_layer: int
    hidden: int
    ffn: int
    n_head: int
    n_head_kv: int
    head_dim: int
    vocab: int
    context: int = 2048
    rms_eps: float = 1e-5
    rope_base: float = 10000.0
    tied: bool = False  # no output.weight: the embedding is used again
    linear_rope_factor: float | None = None  # rope.scaling.type = linear
    rope_factors: tuple[float, ...] | None = None  # rope_freqs.weight, head_dim / 2 divisors

    @property
    def q_dim(self) -> int:
        return self.n_head * self.head_dim

    @property
    def kv_dim(self) -> int:
        return self.n_head_kv * self.head_dim


PRESETS = {
    "tinyllama-1.1b": ModelShape("llama", 22, 2048, 5632, 32, 4, 64, 32000),
    "tiny-llama": ModelShape("llama", 2, 64, 96, 4, 2, 16, 320, context=256),
    # Rows of 256: whole blocks of every type.
    "tiny-llama-256": ModelShape("llama", 1, 256, 256, 4, 2, 64, 320, context=256),
    "tiny-qwen2": ModelShape(
        "qwen2", 2, 64, 96, 4, 2, 16, 320, context=256, rms_eps=1e-6, rope_base=1e6
    ),
    # head_dim 32 with hidden 64: q_dim (128) is not the hidden size, as in Qwen3.
    "tiny-qwen3": ModelShape(
        "qwen3", 2, 64, 96, 4, 2, 32, 320, context=256, rms_eps=1e-6, rope_base=1e6, tied=True
    ),
}


@dataclasses.dataclass
class Vocabulary:
    """The tokenizer section of the file."""

    model: str  # "llama" (SentencePiece style) or "gpt2" (byte-level BPE)
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None  # model "llama" only
    merges: list[str] | None = None  # model "gpt2" only
    pre: str | None = None
    bos: int | None = None
    eos: int | None = None
    unk: int | None = None
    add_bos: bool = False
    add_space_prefix: bool | None = None


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_to_unicode() -> list[str]:
    """GPT-2's printable stand-in for each byte: itself when printable, else U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = [], 0
    for byte in range(256):
        if byte in printable:
            table.append(chr(byte))
        else:
            table.append(chr(0x100 + extra))
            extra += 1
    return table


def spm_vocabulary(pieces: list[str], scores: list[float] | None = None) -> Vocabulary:
    """<unk>, <s>, </s>, the 256 byte tokens, then `pieces`; earlier pieces merge first."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)] + pieces
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    if scores is None:
        scores = [-float(i) for i in range(len(pieces))]
    return Vocabulary(
        "llama", tokens, types, scores=[0.0] * 259 + scores, pre="default",
        bos=1, eos=2, unk=0, add_bos=True, add_space_prefix=True,
    )


def bpe_vocabulary(merges: list[str], special: list[str], pre: str, **options) -> Vocabulary:
    """The 256 byte symbols in GPT-2's order, one token per merge, then the control tokens."""
    tokens = sorted(byte_to_unicode()) + [m.replace(" ", "") for m in merges] + special
    types = [NORMAL] * (256 + len(merges)) + [CONTROL] * len(special)
    if len(set(tokens)) != len(tokens):
        raise ValueError("the merges produce the same token twice")
    return Vocabulary("gpt2", tokens, types, merges=merges, pre=pre, **options)


def _random_merges(start: str, count: int, taken: set[str], seed: int) -> list[tuple[str, str]]:
    """`count` pairs of known pieces whose concatenation is new; `start` only begins a piece."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces, known, pairs = [start, *letters], set(taken), []
    rng = np.random.default_rng(seed)
    while len(pairs) < count:
        for i, j in rng.integers(0, len(pieces), (count, 2)):
            left, right = pieces[i], pieces[j]
            joined = left + right
            if right.startswith(start) or len(joined) > 10 or joined in known:
                continue
            known.add(joined)
            pieces.append(joined)
            pairs.append((left, right))
            if len(pairs) == count:
                break
    return pairs


def synthetic_vocabulary(arch: str, size: int, seed: int = 0) -> Vocabulary:
    """A vocabulary of exactly `size` tokens: bytes, characters, and random letter groups."""
    if arch == "llama":
        characters = ["\u2581"] + [chr(c) for c in range(0x21, 0x7F)]
        n_pairs = size - 259 - len(characters)
        if n_pairs < 0:  # a very small vocabulary: fewer characters, the rest falls back to bytes
            characters, n_pairs = characters[: size - 259], 0
        pairs = _random_merges("\u2581", n_pairs, set(), seed) if n_pairs else []
        return spm_vocabulary([a + b for a, b in pairs] + characters)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    pairs = _random_merges("\u0120", size - 256 - len(special), set(byte_to_unicode()), seed)
    return bpe_vocabulary(
        [f"{a} {b}" for a, b in pairs], special, "qwen2", bos=size - 3, eos=size - 1
    )


def tensor_list(shape: ModelShape) -> list[tuple[str, tuple[int, ...]]]:
    """Names and (rows, columns) of every tensor, in file order."""
    tensors: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (shape.vocab, shape.hidden)),
        ("output_norm.weight", (shape.hidden,)),
    ]
    if not shape.tied:
        tensors.append(("output.weight", (shape.vocab, shape.hidden)))
    if shape.rope_factors is not None:
        tensors.append(("rope_freqs.weight", (shape.head_dim // 2,)))
    for i in range(shape.n_layer):
        b = f"blk.{i}."
        tensors += [
            (b + "attn_norm.weight", (shape.hidden,)),
            (b + "attn_q.weight", (shape.q_dim, shape.hidden)),
            (b + "attn_k.weight", (shape.kv_dim, shape.hidden)),
            (b + "attn_v.weight", (shape.kv_dim, shape.hidden)),
            (b + "attn_output.weight", (shape.hidden, shape.q_dim)),
            (b + "ffn_norm.weight", (shape.hidden,)),
            (b + "ffn_gate.weight", (shape.ffn, shape.hidden)),
            (b + "ffn_up.weight", (shape.ffn, shape.hidden)),
            (b + "ffn_down.weight", (shape.hidden, shape.ffn)),
        ]
        if shape.arch == "qwen2":
            tensors += [
                (b + "attn_q.bias", (shape.q_dim,)),
                (b + "attn_k.bias", (shape.kv_dim,)),
                (b + "attn_v.bias", (shape.kv_dim,)),
            ]
        if shape.arch == "qwen3":
            tensors += [
                (b + "attn_q_norm.weight", (shape.head_dim,)),
                (b + "attn_k_norm.weight", (shape.head_dim,)),
            ]
    return tensors


def _random_rows(name: str, seed: int, index: int, rows: int, columns: int, std: float):
    # Seeded by name and chunk, so a tensor does not depend on the others or on the thread count.
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode()), index]))
    data = rng.standard_normal((rows, columns), dtype=np.float32)
    data *= np.float32(std)
    return data


def random_vector(name: str, length: int, seed: int) -> np.ndarray:
    data = _random_rows(name, seed, 0, 1, length, 1.0)[0]
    if name.endswith(".bias"):
        return data * np.float32(0.3)
    return np.float32(1.0) + data * np.float32(0.1)  # norm weights: near one, none alike


def random_matrix(name, rows, columns, std, dtype, seed, pool) -> np.ndarray:
    """A [rows, columns] matrix in the storage type `dtype`, as the bytes or values to write."""
    kind = gguf.GGMLQuantizationType[dtype]
    step = max(1, _CHUNK_ELEMENTS // columns)

    def chunk(start: int) -> np.ndarray:
        count = min(step, rows - start)
        data = _random_rows(name, seed, start // step, count, columns, std)
        if super_blocks.can_write(dtype):
            return super_blocks.quantize(data, dtype)
        return gguf.quants.quantize(data, kind)

    parts = list(pool.map(chunk, range(0, rows, step)))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def add_metadata(writer: gguf.GGUFWriter, shape: ModelShape, name: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    writer.add_vocab_size(shape.vocab)
    if shape.linear_rope_factor is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.linear_rope_factor)


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos is not None:
        writer.add_bos_token_id(vocabulary.bos)
    if vocabulary.eos is not None:
        writer.add_eos_token_id(vocabulary.eos)
    if vocabulary.unk is not None:
        writer.add_unk_token_id(vocabulary.unk)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)


def type_of(tensor: str, dtype: str) -> str:
    """The type of a matrix in a file of type `dtype`."""
    base, parts = _MIXTURES.get(dtype, (dtype, {}))
    if tensor == "output.weight":
        return parts.get(tensor, base)
    return next((t for part, t in parts.items() if part in tensor and part != "output.weight"), base)


def write_model(path, shape: ModelShape, dtype: str, seed: int, vocabulary: Vocabulary,
                name: str, progress=None) -> None:
    """Writes the file one tensor at a time; `progress(done, total)` counts tensors."""
    if len(vocabulary.tokens) != shape.vocab:
        raise ValueError(f"vocabulary has {len(vocabulary.tokens)} tokens, want {shape.vocab}")
    writer = gguf.GGUFWriter(str(path), shape.arch)
    add_metadata(writer, shape, name)
    writer.add_file_type(_FILE_TYPES[dtype])
    if dtype not in ("F32", "F16", "BF16"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(writer, vocabulary)
    tensors = tensor_list(shape)
    for tensor, dims in tensors:
        if len(dims) == 1:
            writer.add_tensor_info(tensor, dims, np.dtype(np.float32), dims[0] * 4)
            continue
        rows, columns = dims
        own = type_of(tensor, dtype)
        kind = gguf.GGMLQuantizationType[own]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        if columns % block:
            raise ValueError(f"{tensor}: {columns} columns are no multiple of {own}'s {block}")
        row_bytes = columns // block * block_bytes
        if own in ("F32", "F16"):
            stored, np_type = dims, np.dtype(np.float32 if own == "F32" else np.float16)
            raw = None
        else:
            stored, np_type, raw = (rows, row_bytes), np.dtype(np.uint8), kind
        writer.add_tensor_info(tensor, stored, np_type, rows * row_bytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, (tensor, dims) in enumerate(tensors):
            if tensor == "rope_freqs.weight":
                data = np.asarray(shape.rope_factors, dtype=np.float32)
            elif len(dims) == 1:
                data = random_vector(tensor, dims[0], seed)
            else:
                # An untied embedding is a lookup: unit size. A tied one is the output matrix too.
                unit = tensor == "token_embd.weight" and not shape.tied
                std = 1.0 if unit else dims[1] ** -0.5
                data = random_matrix(tensor, *dims, std, type_of(tensor, dtype), seed, pool)
            writer.write_tensor_data(data)
            if progress is not None:
                progress(i + 1, len(tensors))
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tinyllama-1.1b")
    parser.add_argument("--dtype", choices=DTYPES, default="F16", help="type of every matrix")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, help="override the number of layers")
    parser.add_argument("-o", "--output", help="file to write")
    parser.add_argument("--list", action="store_true", help="print the presets and exit")
    args = parser.parse_args()
    if args.list:
        for name, shape in PRESETS.items():
            print(f"{name}: {shape}")
        return 0
    if not args.output:
        parser.error("-o FILE is required")
    shape = PRESETS[args.preset]
    if args.layers is not None:
        if args.layers < 1:
            parser.error("--layers: expected at least 1")
        shape = dataclasses.replace(shape, n_layer=args.layers)
    vocabulary = synthetic_vocabulary(shape.arch, shape.vocab)
    start = time.monotonic()

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} tensors", end="", file=sys.stderr, flush=True)

    write_model(args.output, shape, args.dtype, args.seed, vocabulary,
                f"random {args.preset} {args.dtype} seed {args.seed}", progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    size = os.path.getsize(args.output)
    print(f"{args.output}: {size / 1e6:.1f} MB, {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
