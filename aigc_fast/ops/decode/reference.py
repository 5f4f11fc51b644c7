"""The same decoder in plain PyTorch, all tokens at once, in any dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec

_ACTIVATIONS = {
    "GELU": TF.gelu,
    "GELU_TANH": lambda x: TF.gelu(x, approximate="tanh"),
    "SILU": TF.silu,
    "RELU": TF.relu,
}


def linear(x: Tensor, by: Linear) -> Tensor:
    """A product."""
    return TF.linear(x, by.weight, by.bias)


def normalize(x: Tensor, norm: Norm | None, spec: Spec) -> Tensor:
    """A norm, or, of none, the same."""
    if norm is None:
        return x
    if spec.norm_kind == "LAYER_NORM":
        return TF.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, spec.epsilon)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.epsilon) * norm.weight


def rotate(x: Tensor, positions: Tensor, spec: Spec) -> Tensor:
    """Turns the first numbers of each head, by halves; x is (batch, heads, length, head_size)."""
    if spec.frequencies is None:
        return x
    angles = positions[:, None, :, None] * spec.frequencies
    cosines, sines = angles.cos() * spec.rotation_scale, angles.sin() * spec.rotation_scale
    first, second, rest = x.tensor_split((angles.shape[-1], 2 * angles.shape[-1]), -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], -1)


def heads_of(x: Tensor, linears: tuple[Linear, ...], spec: Spec) -> Tensor:
    """(batch, heads of all, length, head_size)."""
    projected = torch.cat([linear(x, each) for each in linears], -1)
    return projected.unflatten(-1, (-1, spec.head_size)).transpose(1, 2)


def _weighted(query: Tensor, key: Tensor, value: Tensor, scale: float, seen: Tensor, out: Linear) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(shared, 1) for each in (key, value))
    scores = (query @ key.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    # A token that sees none attends to none.
    found = scores.softmax(-1).nan_to_num(0.0) @ value
    return linear(found.transpose(1, 2).flatten(2), out)


def _attend(x: Tensor, layer: Layer, spec: Spec, positions: Tensor, seen: Tensor) -> Tensor:
    heads = heads_of(x, layer.projections, spec)
    query, key, value = heads.split((spec.heads, spec.kv_heads, spec.kv_heads), 1)
    query, key = rotate(query, positions, spec), rotate(key, positions, spec)
    if layer.window is not None:
        length = x.shape[1]
        seen = seen & torch.ones(length, length, dtype=torch.bool).triu(1 - layer.window)
    return _weighted(query, key, value, layer.scale, seen, layer.out)


def _attend_to_memory(x: Tensor, layer: Layer, spec: Spec, memory: Tensor, present: Tensor) -> Tensor:
    cross = layer.cross
    key, value = heads_of(memory, cross.projections, spec).chunk(2, 1)
    return _weighted(heads_of(x, (cross.query,), spec), key, value, cross.scale, present, cross.out)


def _units(x: Tensor, layer: Layer, spec: Spec) -> Tensor:
    activation, up = _ACTIVATIONS[spec.activation], linear(x, layer.up)
    return linear(activation(up) if layer.gate is None else activation(linear(x, layer.gate)) * up, layer.down)


def _part(x: Tensor, norm: Norm, spec: Spec, of: Callable[[Tensor], Tensor]) -> Tensor:
    return normalize(x + of(x), norm, spec) if spec.order == "AFTER" else x + of(normalize(x, norm, spec))


def run_layer(
    x: Tensor,
    layer: Layer,
    spec: Spec,
    attend: Callable[[Tensor], Tensor],
    attend_to_memory: Callable[[Tensor], Tensor],
) -> Tensor:
    """All parts of a layer, by its attention to the tokens, and to a memory where it has one."""
    attended = _part(x, layer.attention_norm, spec, attend)
    if spec.order == "PARALLEL":
        return attended + _units(normalize(x, layer.units_norm, spec), layer, spec)
    if layer.cross is not None:
        attended = _part(attended, layer.cross.norm, spec, attend_to_memory)
    return _part(attended, layer.units_norm, spec, lambda y: _units(y, layer, spec))


def logits(
    spec: Spec,
    ids: Tensor,
    positions: Tensor,
    visible: Tensor | None = None,
    memory: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """What a decoder makes of whole sequences.

    Args:
        spec: the decoder, of one dtype.
        ids: (batch, length), int64.
        positions: (batch, length), int64.
        visible: (batch, length), bool: the tokens that are seen; None for all.
        memory: (batch, source, depth), what layers with `cross` attend to.
        lengths: (batch,), int64: how many of the memory's tokens there are; None for all.

    Returns:
        (batch, length, vocabulary).
    """
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if visible is not None:
        seen = seen & visible[:, None, None, :]
    present = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    if memory is not None and lengths is not None:
        present = (torch.arange(memory.shape[1]) < lengths[:, None])[:, None, None]
    x = TF.embedding(ids, spec.embedding) * spec.embedding_scale
    if spec.positions is not None:
        x = x + TF.embedding(positions, spec.positions)

    for layer in spec.layers:
        x = run_layer(
            x,
            layer,
            spec,
            lambda y, layer=layer: _attend(y, layer, spec, positions, seen),
            lambda y, layer=layer: _attend_to_memory(y, layer, spec, memory, present),
        )
    return linear(normalize(x, spec.norm, spec), spec.head)
