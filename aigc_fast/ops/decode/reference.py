"""The same decoder in plain PyTorch, all tokens at once, in any dtype."""

from __future__ import annotations

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


def _linear(x: Tensor, linear: Linear) -> Tensor:
    return TF.linear(x, linear.weight, linear.bias)


def _norm(x: Tensor, norm: Norm, spec: Spec) -> Tensor:
    if spec.norm_kind == "LAYER_NORM":
        return TF.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, spec.epsilon)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + spec.epsilon) * norm.weight


def _rotate(x: Tensor, positions: Tensor, spec: Spec) -> Tensor:
    """Turns the first numbers of each head, by halves; x is (batch, heads, length, head_size)."""
    if spec.frequencies is None:
        return x
    angles = positions[:, None, :, None] * spec.frequencies
    cosines, sines = angles.cos() * spec.rotation_scale, angles.sin() * spec.rotation_scale
    first, second, rest = x.tensor_split((angles.shape[-1], 2 * angles.shape[-1]), -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], -1)


def _attend(x: Tensor, layer: Layer, spec: Spec, positions: Tensor, seen: Tensor) -> Tensor:
    rows, length = x.shape[:2]
    projected = torch.cat([_linear(x, linear) for linear in layer.projections], -1)
    heads = projected.view(rows, length, -1, spec.head_size).transpose(1, 2)
    query, key, value = heads.split((spec.heads, spec.kv_heads, spec.kv_heads), 1)
    query, key = _rotate(query, positions, spec), _rotate(key, positions, spec)
    key, value = (each.repeat_interleave(spec.heads // spec.kv_heads, 1) for each in (key, value))
    scores = (query @ key.transpose(-1, -2) * layer.scale).masked_fill(~seen, -torch.inf)
    # A token that sees none attends to none.
    found = scores.softmax(-1).nan_to_num(0.0) @ value
    return _linear(found.transpose(1, 2).reshape(rows, length, -1), layer.out)


def logits(spec: Spec, ids: Tensor, positions: Tensor, visible: Tensor | None = None) -> Tensor:
    """What a decoder makes of whole sequences.

    Args:
        spec: the decoder, of one dtype.
        ids: (batch, length), int64.
        positions: (batch, length), int64.
        visible: (batch, length), bool: the tokens that are seen; None for all.

    Returns:
        (batch, length, vocabulary).
    """
    length = ids.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if visible is not None:
        seen = seen & visible[:, None, None, :]
    x = TF.embedding(ids, spec.embedding)
    if spec.positions is not None:
        x = x + TF.embedding(positions, spec.positions)
    activation = _ACTIVATIONS[spec.activation]
    for layer in spec.layers:
        x = x + _attend(_norm(x, layer.before_attention, spec), layer, spec, positions, seen)
        inner = _norm(x, layer.before_units, spec)
        up = _linear(inner, layer.up)
        units = activation(up) if layer.gate is None else activation(_linear(inner, layer.gate)) * up
        x = x + _linear(units, layer.down)
    return _linear(_norm(x, spec.norm, spec), spec.head)
