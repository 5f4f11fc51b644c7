"""Shapes of attention, of batches and of sequences of various lengths, shared by the tests and by bench/."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import aigc_fast.functional as AF


@dataclass(frozen=True)
class Attention:
    """One call of scaled_dot_product_attention.

    Attributes:
        batch, heads, queries, keys, size: sizes.
        value_size: of a value, `size` by default.
        kv_heads: heads of key and value, `heads` by default.
        causal, window, alignment: as the function takes them.
        mask: a key of `MASKS`.
        scale: of the scores; 1 with wide heads makes rows in which one key has nearly all.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    size: int
    value_size: int | None = None
    kv_heads: int | None = None
    causal: bool = False
    window: int | tuple[int | None, int | None] | None = None
    alignment: str = "upper_left"
    mask: str = "none"
    scale: float | None = None

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Query, key and value."""
        groups = self.kv_heads or self.heads
        shapes = (
            (self.batch, self.heads, self.queries, self.size),
            (self.batch, groups, self.keys, self.size),
            (self.batch, groups, self.keys, self.value_size or self.size),
        )
        return [torch.randn(shape).to(dtype) for shape in shapes]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments, a random mask among them."""
        return {
            "attn_mask": MASKS[self.mask](self),
            "is_causal": self.causal,
            "enable_gqa": self.kv_heads is not None,
            "window": self.window,
            "alignment": self.alignment,
            "scale": self.scale,
        }

    def expected(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float | None = None,
        kernel: SDPBackend = SDPBackend.MATH,
    ) -> Tensor:
        """PyTorch's attention under one mask that holds everything, by one of its kernels."""
        offset = self.keys - self.queries if self.alignment == "lower_right" else 0
        distance = torch.arange(self.keys) - torch.arange(self.queries)[:, None] - offset
        left, right = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        seen = torch.ones(self.queries, self.keys, dtype=torch.bool)
        seen &= distance <= 0 if self.causal else seen
        seen &= distance >= -left if left is not None else seen
        seen &= distance <= right if right is not None else seen
        whole = torch.zeros(self.batch, self.heads, self.queries, self.keys, dtype=query.dtype)
        if mask is not None:
            whole = whole.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else whole + mask.to(query.dtype)
        whole = whole.masked_fill(~seen, -math.inf)
        key, value = (t.repeat_interleave(self.heads // t.shape[1], dim=1) for t in (key, value))
        # Of PyTorch's kernels MATH alone has a second derivative.
        with sdpa_kernel([kernel, SDPBackend.MATH]):
            scale = self.scale if scale is None else scale
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=whole, scale=scale)

    def __str__(self) -> str:
        text = f"{self.batch}.{self.heads}.{self.queries}.{self.keys}.{self.size}"
        shown = {"v": self.value_size, "kv": self.kv_heads, "w": self.window, "mask-": self.mask, "scale": self.scale}
        for name, value in shown.items():
            text += f"-{name}{value}".replace(" ", "") if value not in (None, "none") else ""
        return text + ("-causal" if self.causal else "") + ("-lower_right" if self.alignment == "lower_right" else "")


def _padding(a: Attention) -> Tensor:
    lengths = torch.arange(a.batch) * a.keys // max(1, a.batch)
    return (torch.arange(a.keys) < (a.keys - lengths)[:, None])[:, None, None]


# Every kind of mask, by how it is broadcast; "blind" hides all keys from some queries, "blocks" from whole blocks.
MASKS = {
    "none": lambda a: None,
    "bool": lambda a: torch.rand(a.batch, a.heads, a.queries, a.keys) < 0.7,
    "rows": lambda a: torch.rand(a.queries, a.keys) < 0.7,
    "padding": _padding,
    "padding, expanded": lambda a: _padding(a).expand(a.batch, a.heads, a.queries, a.keys),
    "head": lambda a: torch.rand(a.heads, 1, a.keys) < 0.5,
    "query": lambda a: (torch.arange(a.queries) % 3 > 0)[:, None],
    "blind": lambda a: (torch.rand(a.batch, 1, a.queries, a.keys) < 0.5) & (torch.arange(a.queries) % 4 > 0)[:, None],
    "blocks": lambda a: torch.arange(a.queries)[:, None] // 50 == torch.arange(a.keys) // 50,
    "strided": lambda a: torch.rand(a.keys, a.queries).t() < 0.7,
    "float": lambda a: torch.randn(a.heads, a.queries, a.keys),
    "float, -inf": lambda a: torch.randn(a.queries, a.keys).masked_fill(torch.rand(a.queries, a.keys) < 0.3, -math.inf),
    "float row": lambda a: torch.randn(a.batch, 1, 1, a.keys),
}

ATTENTIONS = [
    Attention(2, 3, 17, 23, 16),
    Attention(1, 2, 113, 130, 64, causal=True),
    Attention(1, 1, 200, 150, 40, causal=True),
    Attention(1, 2, 70, 300, 24, causal=True, alignment="lower_right"),
    Attention(2, 6, 67, 67, 8, kv_heads=2, causal=True),
    Attention(1, 8, 5, 301, 64, kv_heads=2, causal=True, alignment="lower_right"),
    Attention(1, 4, 150, 150, 33, window=20),
    Attention(1, 2, 700, 700, 16, window=(63, 0)),
    Attention(1, 2, 90, 40, 16, window=(None, 5), alignment="lower_right"),
    Attention(2, 3, 65, 129, 17, value_size=5),
    Attention(1, 2, 31, 33, 1, value_size=300),
    Attention(1, 1, 20, 50, 1000),
    *(Attention(2, 2, 120, 140, 16, mask=mask) for mask in MASKS if mask != "none"),
    Attention(2, 4, 100, 100, 16, kv_heads=2, causal=True, mask="bool"),
    Attention(1, 2, 90, 110, 16, window=(10, 30), mask="float, -inf"),
    Attention(2, 4, 45, 45, 16, kv_heads=1, mask="head"),
    # Few queries: decoding.
    Attention(2, 3, 1, 1, 64),
    Attention(1, 2, 1, 1500, 64),
    Attention(2, 8, 1, 333, 128, kv_heads=2),
    Attention(1, 3, 1, 130, 17, value_size=5, kv_heads=1, mask="padding"),
    Attention(2, 2, 2, 600, 40, causal=True, alignment="lower_right"),
    Attention(1, 4, 1, 300, 32, kv_heads=1, window=(100, 0), alignment="lower_right", mask="bool"),
    Attention(2, 2, 3, 140, 16, mask="float"),
    Attention(2, 2, 4, 140, 16, mask="blind"),
]

FEW_ATTENTIONS = [ATTENTIONS[i] for i in (0, 1, 4, 5, 9, 12, 16, 25, -7, -3)]

# What bench/ times: prefill, vision, masks, windows and decoding with a cache as language models meet them.
ATTENTION_CALLS = {
    "prefill of 128": Attention(1, 12, 128, 128, 64, causal=True),
    "prefill of 1024": Attention(1, 12, 1024, 1024, 64, causal=True),
    "prefill of 2048, grouped heads": Attention(1, 32, 2048, 2048, 128, kv_heads=8, causal=True),
    "vision, 256": Attention(4, 6, 256, 256, 64),
    "padded batch of 1024": Attention(4, 12, 1024, 1024, 64, mask="padding, expanded"),
    "window of 256 in 4096": Attention(1, 12, 4096, 4096, 64, window=(255, 0)),
    "decoding at 1024": Attention(1, 12, 1, 1024, 64),
    "decoding at 8192, grouped heads": Attention(1, 32, 1, 8192, 128, kv_heads=8),
}


@dataclass(frozen=True)
class Batch:
    """One call of varlen_attn, of sequences by their lengths.

    Attributes:
        queries, keys: the lengths.
        heads, kv_heads, size, value_size: sizes.
        window: (left, right).
        scale: of the scores.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    value_size: int = 16
    window: tuple[int, int] = (-1, -1)
    scale: float | None = None

    def __str__(self) -> str:
        lengths = ("-".join(map(str, lengths)) for lengths in (self.queries, self.keys))
        text = f"{'.'.join(lengths)}-h{self.heads}.{self.kv_heads}-{self.size}.{self.value_size}"
        return text + f"-w{self.window[0]}.{self.window[1]}" + ("" if self.scale is None else f"-scale{self.scale}")

    def bounds(self, dtype: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
        return tuple(torch.tensor([0, *accumulate(lengths)], dtype=dtype) for lengths in (self.queries, self.keys))

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        queries, keys = sum(self.queries), sum(self.keys)
        shapes = (
            (queries, self.heads, self.size),
            (keys, self.kv_heads, self.size),
            (keys, self.kv_heads, self.value_size),
        )
        return [torch.randn(shape).to(dtype) for shape in shapes]

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `varlen_attn`."""
        return {"window_size": self.window, "enable_gqa": self.heads != self.kv_heads, "scale": self.scale}

    def ours(self, *tensors: Tensor) -> Tensor:
        bounds = (bound.to(tensors[0].device) for bound in self.bounds())
        return AF.varlen_attn(*tensors, *bounds, **self.arguments())

    def expected(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        left, right = (None if side < 0 else side for side in self.window)
        outputs, first, first_key = [], 0, 0
        for queries, keys in zip(self.queries, self.keys, strict=True):
            one = Attention(
                1,
                self.heads,
                queries,
                keys,
                self.size,
                self.value_size,
                self.kv_heads,
                window=(left, right),
                alignment="lower_right",
            )
            parts = (
                query[first : first + queries],
                key[first_key : first_key + keys],
                value[first_key : first_key + keys],
            )
            if queries:
                found = one.expected(*(part.transpose(0, 1).unsqueeze(0) for part in parts), None, self.scale)
                outputs.append(found.squeeze(0).transpose(0, 1))
            first, first_key = first + queries, first_key + keys
        return torch.cat(outputs)


LENGTHS = (5, 0, 130, 17, 1, 40)
BATCHES = [
    Batch(LENGTHS, LENGTHS),
    Batch(LENGTHS, LENGTHS, window=(-1, 0)),
    Batch((1, 1, 4, 1), (70, 300, 9, 1), heads=6, window=(-1, 0)),
    Batch((3, 60, 8), (3, 60, 80), heads=6, window=(-1, 0)),
    Batch((40, 3, 90), (20, 200, 90), heads=4, size=24, value_size=40, window=(30, 5)),
    Batch((260, 3, 5, 9, 2), (260, 3, 5, 9, 2), window=(-1, 0)),
    Batch((7, 33), (7, 0)),
    Batch((50,), (50,), heads=1, kv_heads=1, size=5, value_size=3),
    # Rows in which one key has nearly all the weight.
    Batch((1, 2, 5), (100, 257, 64), heads=6, size=80, value_size=24, window=(-1, 0), scale=1.0),
    Batch((3, 1), (64, 7), size=193, value_size=1, scale=1.0),
]
