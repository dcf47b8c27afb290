"""Decode attention by llama.cpp's flash attention, as one operation of ggml (through its C API).

A graph of `NODES` independent attentions over the same tensors, without a mask, is computed as
llama.cpp computes its graphs; the time of one is the graph's divided by their number, so that
starting the threads counts once per graph, as there. Result and fp64 are compared before timing.
"""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp_peer
import numpy as np

NODES = 32
_TYPES = {"f32": np.float32, "f16": np.float16}
_MEMORY = 64 << 20  # tensors of the longest cache, results and graph


class _InitParams(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    _fields_ = [("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p),
                ("n_threads", ctypes.c_int), ("threadpool", ctypes.c_void_p),
                ("abort", ctypes.c_void_p), ("abort_data", ctypes.c_void_p),
                ("use_ref", ctypes.c_bool)]


def _libraries():
    folder, pointer = llama_cpp_peer.library_folder(), ctypes.c_void_p
    base = ctypes.CDLL(str(folder / "libggml-base.so"))
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"))
    base.ggml_init.restype, base.ggml_init.argtypes = pointer, [_InitParams]
    base.ggml_free.argtypes = [pointer]
    base.ggml_new_tensor_4d.restype = pointer
    base.ggml_new_tensor_4d.argtypes = [pointer, ctypes.c_int] + [ctypes.c_int64] * 4
    base.ggml_get_data.restype, base.ggml_get_data.argtypes = pointer, [pointer]
    base.ggml_flash_attn_ext.restype = pointer
    base.ggml_flash_attn_ext.argtypes = [pointer] * 5 + [ctypes.c_float] * 3
    base.ggml_new_graph.restype, base.ggml_new_graph.argtypes = pointer, [pointer]
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    cpu.ggml_graph_plan.restype = _Plan
    cpu.ggml_graph_plan.argtypes = [pointer, ctypes.c_int, pointer]
    cpu.ggml_graph_compute.argtypes = [pointer, ctypes.POINTER(_Plan)]
    cpu.ggml_cpu_init()
    return base, cpu


def _array(base, tensor, dtype, shape) -> np.ndarray:
    count = int(np.prod(shape))
    memory = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(
        base.ggml_get_data(tensor))
    return np.frombuffer(memory, dtype=dtype).reshape(shape)


def _reference(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[0] // k.shape[0]
    out = np.empty_like(q)
    for head in range(q.shape[0]):
        scores = k[head // group] @ q[head] / np.sqrt(q.shape[1])
        weights = np.exp(scores - scores.max())
        out[head] = weights / weights.sum() @ v[head // group]
    return out


def decode_seconds(heads: int, kv_heads: int, dim: int, keys: int, dtype: str, threads: int,
                   seconds: float) -> float:
    """Median time of one attention of one query per head over `keys` keys."""
    base, cpu = _libraries()
    context = base.ggml_init(_InitParams(_MEMORY, None, False))
    f32, kv_type = (llama_cpp_peer.GGML_TYPES[t] for t in ("f32", dtype))
    q = base.ggml_new_tensor_4d(context, f32, dim, 1, heads, 1)
    k = base.ggml_new_tensor_4d(context, kv_type, dim, keys, kv_heads, 1)
    v = base.ggml_new_tensor_4d(context, kv_type, dim, keys, kv_heads, 1)
    values = (_array(base, q, np.float32, (heads, dim)),
              _array(base, k, _TYPES[dtype], (kv_heads, keys, dim)),
              _array(base, v, _TYPES[dtype], (kv_heads, keys, dim)))
    rng = np.random.default_rng(1)
    for x in values:
        x[...] = rng.uniform(-1, 1, x.shape)
    graph = base.ggml_new_graph(context)
    for _ in range(NODES):
        out = base.ggml_flash_attn_ext(context, q, k, v, None, dim**-0.5, 0.0, 0.0)
        base.ggml_build_forward_expand(graph, out)
    plan = cpu.ggml_graph_plan(graph, threads, None)
    work = ctypes.create_string_buffer(max(plan.work_size, 1))
    plan.work_data = ctypes.addressof(work)

    def compute() -> float:
        start = time.perf_counter()
        if cpu.ggml_graph_compute(graph, ctypes.byref(plan)) != 0:
            sys.exit("ggml_graph_compute failed")
        return (time.perf_counter() - start) / NODES

    compute()
    error = np.abs(_array(base, out, np.float32, (heads, dim)) - _reference(*values)).max()
    if not error < (1e-4 if dtype == "f32" else 2e-2):
        sys.exit(f"ggml's attention is off by {error}: this script does not fit that version")
    times, begin = [], time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begin < seconds:
        times.append(compute())
    base.ggml_free(context)
    return float(np.median(times))
