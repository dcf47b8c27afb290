"""A plain PyTorch forward of the llama, qwen2 and qwen3 architectures over a GGUF file.

The oracle of tests/golden and of compare_llama_cpp.py: no cache, no blocking, one line per equation,
in float64 or float32. Weights are dequantised to the chosen type, layer by layer, so the result is
that of exactly the numbers in the file. Needs `torch`, `numpy` and `gguf`.
"""

from __future__ import annotations

import dataclasses

import gguf
import numpy as np
import torch


@dataclasses.dataclass
class Config:
    arch: str
    n_layer: int
    hidden: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    rope_base: float
    rope_scale: float  # positions are multiplied by this (1 / linear factor)
    neox: bool  # RoPE pairs (i, i + head_dim/2) if true, else (2i, 2i + 1)


# Deliberate mistakes that make_golden.py applies to prove that the goldens would notice them.
MISTAKES = (
    "rope_pairing", "rope_base", "rope_factors", "rope_scale", "bias", "qk_norm", "rms_eps",
    "head_mapping", "causal", "attention_scale", "query_position",
)


class TorchDecoder:
    def __init__(self, path, dtype=torch.float64, mistake: str | None = None,
                 activations: str | None = None, kv: torch.dtype | None = None):
        """`activations` rounds the input of every matrix product to F16, BF16 or Q8_0, and `kv`
        rounds keys and values to a type: the error that such storage alone would cause."""
        if mistake is not None and mistake not in MISTAKES:
            raise ValueError(f"unknown mistake {mistake}")
        self.dtype = dtype
        self.mistake = mistake
        self.activations = activations
        self.kv = kv
        self._reader = gguf.GGUFReader(str(path))
        self._tensors = {t.name: t for t in self._reader.tensors}
        arch = self._field("general.architecture")
        if arch not in ("llama", "qwen2", "qwen3"):
            raise ValueError(f"{path}: architecture {arch} is not supported")
        heads = self._field(f"{arch}.attention.head_count")
        hidden = self._field(f"{arch}.embedding_length")
        scaling = self._field(f"{arch}.rope.scaling.type", "none")
        if scaling not in ("none", "linear"):
            raise ValueError(f"{path}: rope scaling {scaling} is not supported")
        factor = self._field(f"{arch}.rope.scaling.factor", 1.0) if scaling == "linear" else 1.0
        self.config = Config(
            arch=arch,
            n_layer=self._field(f"{arch}.block_count"),
            hidden=hidden,
            n_head=heads,
            n_head_kv=self._field(f"{arch}.attention.head_count_kv", heads),
            head_dim=self._field(f"{arch}.attention.key_length", hidden // heads),
            rms_eps=self._field(f"{arch}.attention.layer_norm_rms_epsilon"),
            rope_base=self._field(f"{arch}.rope.freq_base", 10000.0),
            rope_scale=1.0 / factor,
            neox=arch != "llama",
        )

    def _field(self, name: str, default=None):
        field = self._reader.get_field(name)
        if field is None:
            if default is None:
                raise ValueError(f"the file has no {name}")
            return default
        return field.contents()

    def _weight(self, name: str) -> torch.Tensor | None:
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        return torch.from_numpy(np.array(data, dtype=np.float32)).to(self.dtype)

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        eps = 1e-8 if self.mistake == "rms_eps" else self.config.rms_eps
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def _product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.activations is not None:
            kind = gguf.GGMLQuantizationType[self.activations]
            rounded = gguf.quants.quantize(x.float().numpy(), kind)
            x = torch.from_numpy(gguf.quants.dequantize(rounded, kind)).to(self.dtype)
        return x @ weight.T

    def _rope(self, x: torch.Tensor, factors: torch.Tensor | None, first: int = 0) -> torch.Tensor:
        """x is [heads, tokens, head_dim]; angles in float64 whatever the type of x."""
        c, d = self.config, self.config.head_dim
        base = c.rope_base * (10 if self.mistake == "rope_base" else 1)
        scale = 1.0 if self.mistake == "rope_scale" else c.rope_scale
        frequency = base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
        if factors is not None and self.mistake != "rope_factors":
            frequency = frequency / factors.double()
        position = torch.arange(first, first + x.shape[1], dtype=torch.float64) * scale
        angle = torch.outer(position, frequency)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        if c.neox != (self.mistake == "rope_pairing"):
            a, b = x[..., : d // 2], x[..., d // 2 :]
            return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def _attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        c, n = self.config, q.shape[1]
        group = c.n_head // c.n_head_kv
        if self.mistake == "head_mapping":  # h reads h % Hkv instead of h / group
            k, v = k.repeat(group, 1, 1), v.repeat(group, 1, 1)
        else:
            k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scale = c.hidden / c.n_head if self.mistake == "attention_scale" else c.head_dim
        scores = q @ k.transpose(1, 2) * scale**-0.5
        if self.mistake != "causal":
            hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        out = torch.softmax(scores, -1) @ v
        return out.transpose(0, 1).reshape(n, c.n_head * c.head_dim)

    @torch.no_grad()
    def forward(self, tokens, last_only: bool = False) -> torch.Tensor:
        """Logits [tokens, vocabulary], or [1, vocabulary] of the last token."""
        c, n = self.config, len(tokens)
        factors = self._weight("rope_freqs.weight")
        x = self._embedding(tokens)
        for i in range(c.n_layer):
            block = f"blk.{i}."

            def project(name: str, value: torch.Tensor) -> torch.Tensor:
                bias = self._weight(f"{block}{name}.bias")
                y = self._product(value, self._weight(f"{block}{name}.weight"))
                return y if bias is None or self.mistake == "bias" else y + bias

            def heads(value: torch.Tensor, name: str) -> torch.Tensor:
                value = value.view(n, -1, c.head_dim).transpose(0, 1)
                weight = self._weight(f"{block}{name}_norm.weight")
                if weight is not None and self.mistake != "qk_norm":
                    value = self._rms_norm(value, weight)
                return value

            h = self._rms_norm(x, self._weight(block + "attn_norm.weight"))
            shift = 1 if self.mistake == "query_position" else 0
            q = self._rope(heads(project("attn_q", h), "attn_q"), factors, shift)
            k = self._rope(heads(project("attn_k", h), "attn_k"), factors)
            v = project("attn_v", h).view(n, -1, c.head_dim).transpose(0, 1)
            if self.kv is not None:
                k, v = k.to(self.kv).to(self.dtype), v.to(self.kv).to(self.dtype)
            x = x + project("attn_output", self._attention(q, k, v))
            h = self._rms_norm(x, self._weight(block + "ffn_norm.weight"))
            gate = torch.nn.functional.silu(project("ffn_gate", h))
            x = x + project("ffn_down", gate * project("ffn_up", h))
        if last_only:
            x = x[-1:]
        output = "output.weight" if "output.weight" in self._tensors else "token_embd.weight"
        x = self._rms_norm(x, self._weight("output_norm.weight"))
        return self._product(x, self._weight(output))

    def _embedding(self, tokens) -> torch.Tensor:
        tensor = self._tensors["token_embd.weight"]
        rows = gguf.quants.dequantize(tensor.data[np.asarray(tokens)], tensor.tensor_type)
        return torch.from_numpy(np.array(rows, dtype=np.float32)).to(self.dtype)

    def greedy(self, tokens, count: int) -> tuple[list[int], float]:
        """The next `count` tokens by argmax, and the smallest gap between best and second."""
        tokens, gap = list(tokens), float("inf")
        start = len(tokens)
        for _ in range(count):
            top = self.forward(tokens, last_only=True)[0].topk(2)
            gap = min(gap, float(top.values[0] - top.values[1]))
            tokens.append(int(top.indices[0]))
        return tokens[start:], gap


def difference(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Largest absolute difference and relative L2 difference (norm of difference / norm)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    delta = actual - expected
    return {
        "max_abs": float(np.abs(delta).max()),
        "rel_l2": float(np.linalg.norm(delta) / np.linalg.norm(expected)),
    }
