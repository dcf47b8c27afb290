"""Writes GGUF's 256-element formats Q4_K, Q5_K and Q6_K with numpy, for random models: the package
`gguf` reads them but does not write them.

Scales come from the extremes of each sub-block, without the search that `tandem quantize` and
llama.cpp do: about 1.1 times their error.
"""

from __future__ import annotations

import numpy as np


def _nearest(x: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.clip(np.rint(x), low, high).astype(np.uint8 if low >= 0 else np.int8)


def _ratio(x: np.ndarray, d: np.ndarray) -> np.ndarray:
    """x / d, and 0 where d is 0."""
    return np.divide(x, d, out=np.zeros(np.broadcast_shapes(x.shape, d.shape), np.float32),
                     where=d != 0)


def _f16_bytes(d: np.ndarray) -> np.ndarray:
    return d.astype(np.float16).reshape(-1, 1).view(np.uint8)


def _with_minimum(x: np.ndarray, levels: int) -> np.ndarray:
    """Q4_K (levels 15) and Q5_K (31): x = d * scale * q - dmin * min, 8 sub-blocks of 32."""
    blocks = x.reshape(-1, 8, 32)
    minimum = np.maximum(-blocks.min(axis=2), 0)
    scale = (np.maximum(blocks.max(axis=2), 0) + minimum) / levels
    d = (scale.max(axis=1) / 63).astype(np.float16)
    dmin = (minimum.max(axis=1) / 63).astype(np.float16)
    d32, dmin32 = d.astype(np.float32)[:, None], dmin.astype(np.float32)[:, None]
    s = _nearest(_ratio(scale, d32), 0, 63)
    m = _nearest(_ratio(minimum, dmin32), 0, 63)
    level = _ratio(blocks + (dmin32 * m)[:, :, None], (d32 * s)[:, :, None])
    q = _nearest(level, 0, levels).reshape(-1, 4, 2, 32)
    packed = np.concatenate(
        [
            s[:, :4] | s[:, 4:] >> 4 << 6,
            m[:, :4] | m[:, 4:] >> 4 << 6,
            (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    parts = [_f16_bytes(d), _f16_bytes(dmin), packed]
    if levels == 31:
        bits = (q >> 4).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[None, :, None]
        parts.append(np.bitwise_or.reduce(bits, axis=1))
    parts.append(((q[:, :, 0] & 15) | (q[:, :, 1] & 15) << 4).reshape(len(q), 128))
    return np.concatenate(parts, axis=1)


def _q6_k(x: np.ndarray) -> np.ndarray:
    """x = d * scale * (q - 32), 16 sub-blocks of 16."""
    blocks = x.reshape(-1, 16, 16)
    scale = np.abs(blocks).max(axis=2) / 31
    d = (scale.max(axis=1) / 127).astype(np.float16)
    d32 = d.astype(np.float32)[:, None]
    s = _nearest(_ratio(scale, d32), -127, 127)
    level = _ratio(blocks, (d32 * s)[:, :, None])
    q = (_nearest(level, -32, 31) + np.int8(32)).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate(
        [(q[:, :, 0] & 15) | (q[:, :, 2] & 15) << 4, (q[:, :, 1] & 15) | (q[:, :, 3] & 15) << 4],
        axis=2,
    )
    shifts = (2 * np.arange(4, dtype=np.uint8))[None, None, :, None]
    high = np.bitwise_or.reduce((q >> 4) << shifts, axis=2)
    parts = [low.reshape(len(q), 128), high.reshape(len(q), 64), s.view(np.uint8), _f16_bytes(d)]
    return np.concatenate(parts, axis=1)


_WRITERS = {
    "Q4_K": lambda x: _with_minimum(x, 15),
    "Q5_K": lambda x: _with_minimum(x, 31),
    "Q6_K": _q6_k,
}


def can_write(dtype: str) -> bool:
    return dtype in _WRITERS


def quantize(x: np.ndarray, dtype: str) -> np.ndarray:
    """Rows of f32 (a multiple of 256 each) as rows of bytes."""
    data = _WRITERS[dtype](np.ascontiguousarray(x, dtype=np.float32).reshape(-1, 256))
    return data.reshape(x.shape[0], -1)
