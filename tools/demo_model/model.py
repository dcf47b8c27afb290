"""The demo model: a small Llama decoder in plain PyTorch.

Rotary pairs are the neighbouring elements (2i, 2i+1), which is the order that the `llama`
architecture of a GGUF file has, so that no row of the query and key weights is permuted on export.
"""

import dataclasses

import torch
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Config:
    """Dimensions of the model; the query width is heads * head_dim, whatever the hidden size."""

    vocabulary: int
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ffn: int = 384
    rope_theta: float = 1e6
    norm_epsilon: float = 1e-5
    context_length: int = 2048


def rotary_table(config, length, device=None):
    """cos and sin, each [length, head_dim / 2]."""
    pair = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=device)
    frequency = config.rope_theta ** (-pair / config.head_dim)
    angle = torch.arange(length, dtype=torch.float64, device=device)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Rotates neighbouring pairs of x [batch, heads, length, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class RmsNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden))
        self.epsilon = config.norm_epsilon

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


class Block(nn.Module):
    """Attention and SwiGLU feed-forward, each normalised before and added after."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        q_dim, kv_dim = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.attn_norm = RmsNorm(config)
        self.attn_q = nn.Linear(config.hidden, q_dim, bias=False)
        self.attn_k = nn.Linear(config.hidden, kv_dim, bias=False)
        self.attn_v = nn.Linear(config.hidden, kv_dim, bias=False)
        self.attn_output = nn.Linear(q_dim, config.hidden, bias=False)
        self.ffn_norm = RmsNorm(config)
        self.ffn_gate = nn.Linear(config.hidden, config.ffn, bias=False)
        self.ffn_up = nn.Linear(config.hidden, config.ffn, bias=False)
        self.ffn_down = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        c = self.config
        h = self.attn_norm(x)
        q = self.attn_q(h).view(batch, length, c.heads, c.head_dim).transpose(1, 2)
        k = self.attn_k(h).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        v = self.attn_v(h).view(batch, length, c.kv_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn_output(h.transpose(1, 2).reshape(batch, length, -1))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(nn.Module):
    """Decoder whose output matrix is the token embedding."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary, config.hidden)
        self.blk = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.output_norm = RmsNorm(config)
        cos, sin = rotary_table(config, config.context_length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self):
        """Each block starts as the identity: what it adds to its input starts at zero."""
        nn.init.normal_(self.token_embd.weight, std=0.05)
        for name, weight in self.named_parameters():
            if name.endswith(("attn_output.weight", "ffn_down.weight")):
                nn.init.zeros_(weight)
            elif weight.ndim == 2 and "embd" not in name:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def block_states(self, tokens):
        """What each block puts out, [batch, length, hidden] each, for tokens [batch, length]."""
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        states = [self.token_embd(tokens)]
        for block in self.blk:
            states.append(block(states[-1], cos, sin))
        return states[1:]

    def hidden_states(self, tokens):
        """Normalised states [batch, length, hidden] that the logits are made of."""
        return self.output_norm(self.block_states(tokens)[-1])

    def logits(self, states):
        """Logits [..., vocabulary] of states [..., hidden]."""
        return states @ self.token_embd.weight.T

    def forward(self, tokens):
        return self.logits(self.hidden_states(tokens))
