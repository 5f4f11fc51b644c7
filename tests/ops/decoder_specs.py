"""Small decoders as data, with random numbers, and what their weights are rounded to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.decode import reference
from aigc_fast.ops.decode.engine import Engine, State
from aigc_fast.ops.decode.spec import Cross, Layer, Linear, Norm, Spec

VOCABULARY, POSITIONS = 131, 90


def random_numbers(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape) * scale


def linear(outputs: int, inputs: int, bias: bool) -> Linear:
    return Linear(
        random_numbers(outputs, inputs, scale=1.2 * inputs**-0.5), random_numbers(outputs, scale=0.1) if bias else None
    )


def _norm(hidden: int, bias: bool) -> Norm:
    return Norm(1 + random_numbers(hidden, scale=0.1), random_numbers(hidden, scale=0.1) if bias else None)


def _cross(hidden: int, memory: int, heads: int, kv_heads: int, size: int, bias: bool) -> Cross:
    return Cross(
        _norm(hidden, bias),
        linear(heads * size, hidden, bias),
        tuple(linear(kv_heads * size, memory, bias) for _ in range(2)),
        linear(hidden, heads * size, bias),
        0.9 * size**-0.5,
    )


def make_spec(
    hidden: int,
    heads: int,
    kv_heads: int,
    size: int,
    units: int,
    *,
    bias: bool = True,
    is_gated: bool = False,
    rotated: int = 0,
    memory: int = 0,
    window: int | None = None,
    has_last_norm: bool = True,
    is_tied: bool = False,
    **changes: Any,
) -> Spec:
    """Two layers; learned positions, where none are rotated, and one projection then rather than three."""
    columns = heads * size, kv_heads * size, kv_heads * size
    layers = tuple(
        Layer(
            _norm(hidden, bias),
            _norm(hidden, bias),
            tuple(linear(count, hidden, bias) for count in (columns if rotated else (sum(columns),))),
            linear(hidden, heads * size, bias),
            linear(units, hidden, bias),
            linear(units, hidden, bias) if is_gated else None,
            linear(hidden, units, bias),
            size**-0.5,
            _cross(hidden, memory, heads, kv_heads, size, bias) if memory else None,
            window if index else None,
        )
        for index in range(2)
    )
    embedding = random_numbers(VOCABULARY, hidden)
    head = linear(VOCABULARY, hidden, bias)
    spec = Spec(
        embedding,
        None if rotated else random_numbers(POSITIONS, hidden, scale=0.3),
        10.0 ** -torch.linspace(0, 2, rotated // 2) if rotated else None,
        1.1,
        layers,
        _norm(hidden, bias) if has_last_norm else None,
        head._replace(weight=embedding) if is_tied else head,
        heads,
        kv_heads,
        size,
        1e-5,
        "LAYER_NORM" if bias else "RMS_NORM",
        "GELU_TANH",
    )
    return spec._replace(**changes)


_LLAMA: dict[str, Any] = {"bias": False, "is_gated": True, "activation": "SILU"}
_PAPER: dict[str, Any] = {
    "order": "AFTER",
    "activation": "RELU",
    "embedding_scale": 1.7,
    "has_last_norm": False,
    "is_tied": True,
}
SPECS: dict[str, Callable[[], Spec]] = {
    "gpt2": lambda: make_spec(96, 6, 6, 16, 200),
    "gpt2-odd": lambda: make_spec(37, 3, 3, 11, 71),
    "llama": lambda: make_spec(64, 8, 2, 8, 96, rotated=4, **_LLAMA),
    "llama-odd": lambda: make_spec(75, 9, 1, 13, 33, rotated=6, **_LLAMA),
    "mistral": lambda: make_spec(64, 4, 2, 16, 50, rotated=16, window=7, **_LLAMA),
    "neox": lambda: make_spec(72, 4, 4, 18, 100, rotated=4, order="PARALLEL", activation="GELU"),
    "paper": lambda: make_spec(64, 4, 4, 16, 130, memory=64, **_PAPER),
    "paper-odd": lambda: make_spec(45, 5, 1, 9, 61, memory=23, **_PAPER | {"has_last_norm": True}),
    "to-memory": lambda: make_spec(48, 6, 3, 10, 90, memory=70, rotated=10, **_LLAMA),
}


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A spec with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def norm_of_error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def fake_bytes(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def fake_nibbles(weight: Tensor) -> Tensor:
    depth = weight.shape[1]
    groups = torch.nn.functional.pad(weight, (0, -depth % 32)).unflatten(1, (-1, 32))
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))

    def rounded(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """By a scale; the error, and the scale that suits the same steps best."""
        scale = scale.half().float()
        steps = (groups / scale).nan_to_num(0).round().clamp(-8, 7)
        better = (steps * groups).sum(-1, keepdim=True) / steps.square().sum(-1, keepdim=True)
        return steps * scale, (steps * scale - groups).square().sum(-1, keepdim=True), better.nan_to_num(0)

    def best(*tried: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        chosen = torch.stack([error for _, error, _ in tried]).argmin(0, keepdim=True)
        return tuple(torch.stack(parts).take_along_dim(chosen, 0)[0] for parts in zip(*tried, strict=True))

    found = best(*(rounded(farthest / steps) for steps in (-8.0, -8.5, -7.5, -7.0, 7.0, 7.5)))
    return best(found, rounded(found[2]))[0].flatten(1)[:, :depth]


def rounded_to(spec: Spec, weights: str) -> Spec:
    """A decoder with the weights that an engine keeps."""
    fake = {"bf16": lambda weight: weight.bfloat16().float(), "int8": fake_bytes, "int4": fake_nibbles}[weights]
    head_fake = fake_bytes if weights == "int4" else fake

    def rounded(linear: Linear | None, by: Callable[[Tensor], Tensor] = fake) -> Linear | None:
        return linear and linear._replace(weight=by(linear.weight))

    layers = [
        layer._replace(
            projections=tuple(map(rounded, layer.projections)),
            cross=layer.cross
            and layer.cross._replace(
                projections=tuple(map(rounded, layer.cross.projections)),
                **{name: rounded(getattr(layer.cross, name)) for name in ("query", "out")},
            ),
            **{name: rounded(getattr(layer, name)) for name in ("out", "up", "gate", "down")},
        )
        for layer in spec.layers
    ]
    return spec._replace(layers=tuple(layers), head=rounded(spec.head, head_fake))


LENGTHS = torch.tensor([9, 140, 0, 1, 33, 140, 17, 64])


def encoded_rows(depth: int) -> Tensor:
    """What an encoder may have given: the lengths of the rows are LENGTHS."""
    return torch.randn(len(LENGTHS), 140, depth, generator=torch.Generator().manual_seed(8))


def begin(engine: Engine, rows: int, sources: Tensor | None = None) -> State:
    """Sequences, each of its row of the memory where the decoder attends to one."""
    if not engine.memory_depth:
        return engine.begin(rows)
    memory = engine.remember(encoded_rows(engine.memory_depth).to(engine.device), LENGTHS)
    return engine.begin(rows, memory, torch.arange(rows) if sources is None else sources)


def exact_logits(
    spec: Spec, ids: Tensor, positions: Tensor, visible: Tensor | None = None, encoded: Tensor | None = None
) -> Tensor:
    """The reference's logits."""
    cross = spec.layers[0].cross
    if cross is None:
        return reference.logits(spec, ids, positions, visible)
    if encoded is not None:
        return reference.logits(spec, ids, positions, visible, encoded)
    encoded = encoded_rows(cross.projections[0].weight.shape[1]).to(spec.embedding.dtype)
    return reference.logits(spec, ids, positions, visible, encoded[: len(ids)], LENGTHS[: len(ids)])
