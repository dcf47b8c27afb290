"""llama.cpp as a peer, through the low-level API of the package `llama-cpp-python`.

Used by compare_llama_cpp.py, bench/peer_step.py and tests/golden/make_golden.py. Everything
runs on the CPU. Install: pip install llama-cpp-python (built for this machine, so that the
comparison is fair: CMAKE_ARGS="-DGGML_NATIVE=ON"). Another build of llama.cpp, of the version that
the package has, is taken from the folder LLAMA_CPP_LIB_PATH: for example one with its BLAS back end
(-DGGML_BLAS=ON -DGGML_BLAS_VENDOR=OpenBLAS).
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import time


def _preload() -> None:
    """The package loads its own ggml first, whatever LLAMA_CPP_LIB_PATH says, and libllama would then
    bind to that one: a library of the same name that is already there wins."""
    folder = os.environ.get("LLAMA_CPP_LIB_PATH")
    for name in ("libggml-base.so", "libggml-cpu.so", "libggml-blas.so", "libggml.so"):
        path = pathlib.Path(folder or "") / name
        if folder and path.exists():
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


_preload()
import llama_cpp  # noqa: E402
import numpy as np  # noqa: E402

GGML_TYPES = {"f32": 0, "f16": 1, "bf16": 30}


@llama_cpp.llama_log_callback
def _errors_only(level, text, user_data):
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        print(text.decode(errors="replace"), end="")


class Peer:
    """A model (or, with `vocab_only`, a tokenizer) loaded by llama.cpp."""

    def __init__(self, path, threads: int = 1, context: int = 512, kv_dtype: str = "f16",
                 flash_attention: bool | None = False, vocab_only: bool = False):
        """`flash_attention` None leaves the choice to llama.cpp, as its own bench does."""
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_errors_only, None)
        model_params = llama_cpp.llama_model_default_params()
        model_params.vocab_only = vocab_only
        model_params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        self._ctx = None
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self._vocab)
        if vocab_only:
            return
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = max(context, 512)
        params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = GGML_TYPES[kv_dtype]
        params.flash_attn_type = -1 if flash_attention is None else int(flash_attention)
        params.no_perf = True
        self._ctx = llama_cpp.llama_init_from_model(self._model, params)
        if not self._ctx:
            raise RuntimeError(f"llama.cpp cannot create a context for {path}")

    def close(self) -> None:
        if self._ctx:
            llama_cpp.llama_free(self._ctx)
            self._ctx = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self.close()

    def tokenize(self, text: bytes, add_special: bool, parse_special: bool) -> list[int]:
        capacity = 2 * len(text) + 16
        ids = (llama_cpp.llama_token * capacity)()
        n = llama_cpp.llama_tokenize(
            self._vocab, text, len(text), ids, capacity, add_special, parse_special
        )
        if n < 0:
            raise RuntimeError(f"llama_tokenize needs {-n} tokens for {text!r}")
        return list(ids[:n])

    def token_bytes(self, token: int) -> bytes:
        """The bytes the token stands for; nothing for a control token."""
        buffer = ctypes.create_string_buffer(512)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[: max(n, 0)]

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._ctx), True)

    def decode(self, tokens, past: int, all_logits: bool) -> None:
        """Runs `tokens` at positions past..; keeps logits of all of them or of the last."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = past + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = all_logits or i == len(tokens) - 1
        status = llama_cpp.llama_decode(self._ctx, batch)
        llama_cpp.llama_batch_free(batch)
        if status != 0:
            raise RuntimeError(f"llama_decode returned {status}")

    def logits_row(self, i: int) -> np.ndarray:
        row = llama_cpp.llama_get_logits_ith(self._ctx, i)
        return np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy()

    def logits(self, tokens) -> np.ndarray:
        """Logits [len(tokens), vocabulary], all positions in one batch from an empty cache."""
        self.clear()
        self.decode(tokens, 0, all_logits=True)
        return np.stack([self.logits_row(i) for i in range(len(tokens))])

    def prompt_seconds(self, n_tokens: int, seed: int = 0) -> float:
        """Time of one batch of random tokens from an empty cache (llama-bench's pp)."""
        tokens = np.random.default_rng(seed).integers(0, self.n_vocab, n_tokens).tolist()
        self.clear()
        start = time.perf_counter()
        self.decode(tokens, 0, all_logits=False)
        llama_cpp.llama_synchronize(self._ctx)
        return time.perf_counter() - start

    def generation_seconds(self, n_tokens: int, past: int = 0, seed: int = 0) -> float:
        """Time of `n_tokens` single-token steps (llama-bench's tg) after `past` tokens."""
        tokens = np.random.default_rng(seed).integers(0, self.n_vocab, past + n_tokens).tolist()
        self.clear()
        if past:
            self.decode(tokens[:past], 0, all_logits=False)
            llama_cpp.llama_synchronize(self._ctx)
        start = time.perf_counter()
        for i in range(past, past + n_tokens):
            self.decode(tokens[i : i + 1], i, all_logits=False)
            llama_cpp.llama_synchronize(self._ctx)
        return time.perf_counter() - start


def version() -> str:
    return llama_cpp.__version__


def library_folder() -> pathlib.Path:
    """Where ggml's and llama.cpp's libraries are."""
    own = pathlib.Path(llama_cpp.__file__).parent / "lib"
    return pathlib.Path(os.environ.get("LLAMA_CPP_LIB_PATH") or own)


def backends() -> list[str]:
    """Names of the back ends that computations may use: "CPU", and "BLAS" where it was built in."""
    llama_cpp.llama_backend_init()
    ggml = ctypes.CDLL(str(library_folder() / "libggml.so"))
    ggml.ggml_backend_reg_count.restype = ctypes.c_size_t
    ggml.ggml_backend_reg_get.restype = ctypes.c_void_p
    ggml.ggml_backend_reg_get.argtypes = [ctypes.c_size_t]
    base = ctypes.CDLL(str(library_folder() / "libggml-base.so"))
    base.ggml_backend_reg_name.restype = ctypes.c_char_p
    base.ggml_backend_reg_name.argtypes = [ctypes.c_void_p]
    return [base.ggml_backend_reg_name(ggml.ggml_backend_reg_get(i)).decode()
            for i in range(ggml.ggml_backend_reg_count())]
