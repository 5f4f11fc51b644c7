"""The public function: PyTorch's signature, autocast, any number of batch dimensions, over the op."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from aigc_fast.ops.attention import choice, cpu
from aigc_fast.ops.attention.operators import ATTENTION, attention_unseen, attention_unseen_grouped
from aigc_fast.ops.attention.reference import band
from aigc_fast.ops.random.operators import draw_key
from aigc_fast.runtime import native, rows, tuning
from aigc_fast.runtime.arguments import (
    REFUSALS,
    check_flags,
    check_generator,
    check_probability,
    check_types,
    number,
)
from aigc_fast.runtime.autocast import autocast, has_autocast
from aigc_fast.runtime.backends import leave_to_pytorch
from aigc_fast.runtime.native import PLAIN, UNKNOWN, WANTS_GRADIENT
from aigc_fast.runtime.operator import kind_of_call
from aigc_fast.runtime.precision import check_precision
from aigc_fast.runtime.precision import precision as precision_in_force
from aigc_fast.runtime.recording import (
    has_torch_function_variadic,
    is_overridden,
    is_recorded,
    is_symbolic,
    record,
    tracing_state,
)

Window = int | tuple[int | None, int | None] | None
ALIGNMENTS = ("upper_left", "lower_right")
# Bound here, so that PyTorch's function can be replaced by this one.
_pytorchs = torch.nn.functional.scaled_dot_product_attention
_UNKNOWN_TIMES = tuning.Measured(0.0, 0.0)


def _kernels(
    kind: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """The output of a call that the kernel may have before anything else is looked at, or None."""
    if kind == PLAIN:
        return cpu.attend_at_once(query, key, value, mask, is_causal, enable_gqa, scale)
    if kind != WANTS_GRADIENT or not query.is_cpu or (mask is not None and mask.requires_grad):
        return None
    batches, heads, queries, size = query.shape
    if mask is not None:
        mask = mask.expand(batches, heads, queries, key.shape[2])
    run = attention_unseen_grouped if enable_gqa else attention_unseen
    numbers = 0.0, -1, 0 if is_causal else -1, 0, size**-0.5 if scale is None else float(scale)
    return ATTENTION.differentiable(run, query, key, value, mask, None, *numbers)[0]


def _at_once(
    kind: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor | None:
    """The output of a call that the kernel or PyTorch may have before anything else is looked at, or None."""
    try:
        measured = None
        if tuning.knows(ATTENTION.name):
            measured, output = _measured(kind, query, key, value, mask, is_causal, scale, enable_gqa)
            if output is not None:
                return output
        dense = kind == PLAIN and measured is None and mask is None and not is_causal
        if dense and choice.is_left(query, key, value):
            return _pytorchs(query, key, value, scale=scale, enable_gqa=enable_gqa)
        output = _kernels(kind, query, key, value, mask, is_causal, scale, enable_gqa)
        if output is not None:
            return output
        reason = None if measured else choice.leave_for_speed(query, key, value, mask, is_causal, scale)
        if reason is not None:
            leave_to_pytorch(ATTENTION.name, reason)
            return _pytorchs(query, key, value, mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    except (*REFUSALS, ValueError, ZeroDivisionError):
        pass  # the caller's checks name the argument
    return None


def _measured(
    kind: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> tuple[tuning.Measured | None, Tensor | None]:
    """What was measured of such calls, and PyTorch's output where it was faster or was measured now."""
    if not (choice.is_open() and choice.has_a_twin(query, key, value, mask, is_causal, scale)):
        return None, None
    tensors = query, key, value, mask
    asked = native.signature(*tensors), is_causal, scale is None, enable_gqa, kind, precision_in_force()
    found, now = ATTENTION.choice.remembered(asked), False

    def ours(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None, *rest: Any) -> Tensor | None:
        return _kernels(kind_of_call(q, k, v, m), q, k, v, m, is_causal, scale, enable_gqa)

    def pytorchs(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None, *rest: Any) -> Tensor:
        return _pytorchs(q, k, v, m, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)

    if found is None or (found == _UNKNOWN_TIMES and tuning.is_on()):
        args = *tensors, is_causal, scale is None, enable_gqa
        if kind == UNKNOWN:
            found = tuning.found(ATTENTION.name, args)
        else:
            found, now = tuning.measured(ATTENTION.name, args, ours, pytorchs)
        ATTENTION.choice.remember(asked, found or _UNKNOWN_TIMES)
    if found is None or found == _UNKNOWN_TIMES:
        return None, None
    if found.is_ours and not now:
        return found, None
    leave_to_pytorch(ATTENTION.name, str(found))
    return found, pytorchs(*tensors)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    alignment: str = "upper_left",
    generator: torch.Generator | None = None,
    precision: str | None = None,
) -> Tensor:
    """softmax(scale * query @ key^T + mask) @ value, `torch.nn.functional.scaled_dot_product_attention`.

    On the CPU in float32, bfloat16 and float16 the score matrix is never materialized, forward or backward; keys that a
    mask hides from a whole block of queries are not read. Method: Dao et al., "FlashAttention", 2022, and, for the
    running softmax, Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

    Args:
        query: (..., H, L, E), or (L, E); any strides. The leading dimensions of query, key and value are broadcast.
        key: (..., H, S, E), of query's dtype; (..., G, S, E) with `enable_gqa`.
        value: (..., H, S, V), of query's dtype; (..., G, S, V) with `enable_gqa`.
        attn_mask: broadcastable to (..., H, L, S); bool (True: takes part in attention), or float32 or query's dtype,
            added to the scores.
        dropout_p: the probability of dropping an element of the softmax; the others are scaled by 1 / (1 - p). Unlike
            in PyTorch, dropout stays on the same kernel: the mask comes from Philox and is redrawn in backward.
        is_causal: whether query i sees only keys 0 to i; combined with `attn_mask`, both apply.
        scale: 1 / sqrt(E) by default.
        enable_gqa: whether H may be a multiple of G: each H / G consecutive query heads share a key and value head.
        window: for local attention, (left, right): query i sees keys i - left to i + right; either may be None for no
            limit, and one integer stands for both. None for no window.
        alignment: of `is_causal` and `window` where L and S differ: "upper_left" aligns query 0 with key 0, as PyTorch
            does; "lower_right" aligns the last query with the last key, as decoding with a cache needs.
        generator: the source of dropout's key; by default torch's default generator of the device.
        precision: "highest", "high" or "medium" for this call; by default as PyTorch's switch says.

    Returns:
        (..., H, L, V), of query's dtype; zeros for a query that sees no key, NaN for a query with a NaN.

    Raises:
        RuntimeError: if shapes, dtypes or devices do not match; the message names the argument.
        TypeError: if an argument is of another type than it should be; the message names it.
        ValueError: if `window`, `alignment`, `dropout_p` or `precision` is invalid.
    """
    kind, tensors = kind_of_call(query, key, value, attn_mask), (query, key, value, attn_mask)
    # Tensors of a known kind include neither subclasses nor tracers.
    foreign = kind == UNKNOWN and (
        (has_torch_function_variadic(*tensors) and is_overridden(*tensors)) or tracing_state() is not None
    )
    is_torchs = window is None and alignment == "upper_left"
    finite = scale is None or _is_finite(scale)
    flagged = type(is_causal) is bool and type(enable_gqa) is bool
    if finite and flagged and precision is None and is_torchs and dropout_p == 0.0 and not foreign:
        output = _at_once(kind, query, key, value, attn_mask, is_causal, scale, enable_gqa)
        if output is not None:
            return output
    check_precision(precision)
    if attn_mask is not None and type(attn_mask) is not Tensor:
        attn_mask = _seen_through(attn_mask, query.device if isinstance(query, Tensor) else None)
    tensors, numbers = (query, key, value, attn_mask), (dropout_p, is_causal, scale, enable_gqa)
    if foreign and is_symbolic(*tensors):
        ours = {"window": window, "alignment": alignment, "generator": generator, "precision": precision}
        return record(scaled_dot_product_attention, *tensors, *numbers, **ours)
    if generator is None and (is_recorded() or (foreign and is_torchs and is_overridden(*tensors))):
        return _as_pytorchs(*tensors, *numbers, window, alignment)
    check_types(query=query, key=key, value=value)
    if query.is_nested or key.is_nested or value.is_nested:
        _check_nested(window, alignment, generator)
        return _pytorchs(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    check_flags(is_causal=is_causal, enable_gqa=enable_gqa)
    left, right = (-1, -1) if window is None else _sides(window)
    if is_causal:
        right = 0
    check_probability("dropout_p", dropout_p)
    check_generator(generator)
    if has_autocast(query):
        query, key, value, attn_mask = autocast((query, key, value, attn_mask))
    q, k, v, mask = query, key, value, attn_mask
    simple = _is_simple(query, key, value, enable_gqa)
    if not simple:
        _check(query, key, value)
    lead = tuple(query.shape[:2]) if simple else _leading_sizes(query, key, value, enable_gqa)
    offset = 0 if alignment == "upper_left" else _offset(alignment, query, key)
    if mask is not None:
        _check_mask(mask, query)
    if scale is None:
        scale = query.size(-1) ** -0.5 if query.size(-1) else 1.0
    if generator is None:
        reason = choice.leave(query, key, value, mask, dropout_p, (left, right, offset), finite, simple)
        if reason is not None:
            leave_to_pytorch(ATTENTION.name, reason)
            causal = mask is None and (left, right, offset) == (-1, 0, 0) and not (finite and scale <= 0)
            if not causal:
                mask = _with_band(_as_pytorch_takes(mask, query), query, key, left, right, offset)
            return _pytorchs(query, key, value, mask, dropout_p, causal, scale=scale, enable_gqa=enable_gqa)
    if not simple:
        q, k, v = _in_four_dimensions(query, key, value, lead)
    if mask is not None:
        mask = _broadcast_mask(mask, lead, (*q.shape[:3], k.shape[2]))
    numbers = float(dropout_p), left, right, offset, float(scale)
    output = _run(q, k, v, mask, *numbers, generator=generator, precision=precision)
    return output if simple else output.reshape(*lead, *output.shape[2:])


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    left: int,
    right: int,
    offset: int,
    scale: float,
    *,
    generator: torch.Generator | None,
    precision: str | None,
) -> Tensor:
    """The op's output, of four dimensions as its inputs, with a key for dropout that is drawn here."""
    key = None if dropout_p == 0.0 else draw_key(q, generator)
    own_rows = None
    if key is not None and rows.layouts and generator is None:
        own_rows = rows.window_of(len(q), q.shape[1] * q.shape[2] * k.shape[2])
    if own_rows is not None:
        key, q, k, v = own_rows.key(key), *map(own_rows.put, (q, k, v))
        mask = own_rows.put(mask) if mask is not None and len(mask) > 1 else mask
    arguments = q, k, v, mask, key, dropout_p, left, right, offset, scale
    if mask is not None and mask.requires_grad:
        output, _ = ATTENTION.reference(*arguments)
    else:
        output, _ = ATTENTION(*arguments, precision=precision)
    return output if own_rows is None else own_rows.cut(output)


def _is_finite(scale: Any) -> bool:
    value = number("scale", scale)
    return value - value == 0


def _as_pytorchs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    window: Window,
    alignment: str,
) -> Tensor:
    """The call made of PyTorch's own operators: what its function does not take becomes part of the mask."""
    if window is not None or alignment != ALIGNMENTS[0] or (is_causal and mask is not None):
        left, right = _sides(window)
        offset = 0 if alignment == ALIGNMENTS[0] else _offset(alignment, query, key)
        mask = _with_band(mask, query, key, left, 0 if is_causal else right, offset)
        is_causal = False
    return _pytorchs(query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def _check_nested(window: Window, alignment: str, generator: torch.Generator | None) -> None:
    for name, given in (("window", window), ("alignment", alignment), ("generator", generator)):
        if given not in (None, ALIGNMENTS[0]):
            raise ValueError(f"{name}={given!r}: expected none with nested tensors, which PyTorch's own function takes")


def _seen_through(mask: Any, device: torch.device | None) -> Any:
    """The keys that PyTorch's causal bias leaves visible, bool (L, S); other masks as they are."""
    # Importing its module takes longer than importing PyTorch; whoever has such a bias has imported it.
    biases = sys.modules.get("torch.nn.attention.bias")
    if biases is None or not isinstance(mask, biases.CausalBias):
        return mask
    lengths = mask.seq_len_q, mask.seq_len_kv
    offset = 0 if mask.variant == biases.CausalVariant.UPPER_LEFT else lengths[1] - lengths[0]
    return band(*lengths, -1, 0, offset, device)


def _is_simple(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> bool:
    """Whether there is nothing to check, to broadcast or to leave to PyTorch, the mask apart."""
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4 or not (query.is_cpu and key.is_cpu and value.is_cpu):
        return False
    dtype = query.dtype
    if key.dtype != dtype or value.dtype != dtype or dtype not in cpu.UP_TO_FLOAT32:
        return False
    (batches, heads, _, size), (*of_key, key_size), (*of_value, _) = query.shape, key.shape, value.shape
    groups = of_key[1]
    grouped = groups == heads or (enable_gqa and groups > 0 and heads % groups == 0)
    return of_key == of_value and of_key[0] == batches and key_size == size and grouped


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2:
            raise RuntimeError(
                f"{name} has shape {tuple(tensor.shape)}: expected (..., heads, length, size), at least 2 dimensions"
            )
        if tensor.device != query.device:
            raise RuntimeError(f"{name} is on {tensor.device}: expected query's device {query.device}")
        if tensor.dtype != query.dtype:
            raise RuntimeError(f"{name} has dtype {tensor.dtype}: expected query's {query.dtype}")
    if not query.is_floating_point():
        raise RuntimeError(f"query has dtype {query.dtype}: expected a floating-point type")
    if key.shape[-1] != query.shape[-1]:
        raise RuntimeError(f"key has size {key.shape[-1]} in its last dimension: expected query's {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise RuntimeError(f"value has length {value.shape[-2]}: expected key's {key.shape[-2]}")


def _check_mask(mask: Tensor, query: Tensor) -> None:
    check_types(attn_mask=mask)
    if mask.device != query.device:
        raise RuntimeError(f"attn_mask is on {mask.device}: expected query's device {query.device}")
    if mask.dtype not in (torch.bool, torch.float32, query.dtype):
        raise RuntimeError(f"attn_mask has dtype {mask.dtype}: expected bool, float32 or query's {query.dtype}")


def _offset(alignment: str, query: Tensor, key: Tensor) -> int:
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment={alignment!r}: expected one of {', '.join(ALIGNMENTS)}")
    return key.shape[-2] - query.shape[-2]


def _sides(window: Window) -> tuple[int, int]:
    """How far a query sees to both sides; -1 for as far as there are keys."""
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    if len(sides) != 2 or not all(side is None or (type(side) is int and side >= 0) for side in sides):
        raise ValueError(f"window={window!r}: expected an integer or (left, right), each at least 0 or None")
    left, right = (-1 if side is None else side for side in sides)
    return left, right


def _as_pytorch_takes(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """PyTorch reads a mask of another dtype than query's wrongly or not at all, but for 16 bits on the CPU."""
    if mask is None or mask.dtype == torch.bool or (query.is_cpu and query.dtype in cpu.UP_TO_FLOAT32):
        return mask
    return mask.to(query.dtype)


def _with_band(mask: Tensor | None, query: Tensor, key: Tensor, left: int, right: int, offset: int) -> Tensor | None:
    seen = band(query.shape[-2], key.shape[-2], left, right, offset, query.device)
    if mask is None or seen is None:
        return seen if mask is None else mask
    return mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)


def _leading_sizes(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[int, ...]:
    """What the three broadcast to before their lengths: batch sizes, then query heads; none of two dimensions."""
    shapes = query.shape, key.shape, value.shape
    try:
        batch = torch.broadcast_shapes(*(shape[:-3] for shape in shapes))
    except RuntimeError:
        shown = [tuple(shape) for shape in shapes]
        raise RuntimeError(f"query, key and value have shapes {shown}: expected batch sizes that fit") from None
    if all(len(shape) == 2 for shape in shapes):
        return ()
    own, of_key, of_value = map(_heads, (query, key, value))
    heads = own if own != 1 or enable_gqa else of_value if of_key == 1 else of_key
    for name, groups in (("key", of_key), ("value", of_value)):
        if groups not in (1, heads) and not (enable_gqa and groups > 0 and heads % groups == 0):
            raise RuntimeError(
                f"{name} has {groups} heads: expected {'a divisor of' if enable_gqa else '1 or'} query's {heads}"
            )
    return (*batch, heads)


def _heads(tensor: Tensor) -> int:
    return tensor.shape[-3] if tensor.dim() > 2 else 1


def _in_four_dimensions(
    query: Tensor, key: Tensor, value: Tensor, lead: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """(batch, heads, length, size) of all three, with as many key as value heads: query's or a divisor of them."""
    batch, heads = lead[:-1], lead[-1] if lead else 1
    of_key, of_value = _heads(key), _heads(value)
    groups = max(of_key, of_value)
    if heads == 0 or {of_key, of_value} - {1, groups}:
        groups = heads
    return tuple(
        _four_dimensions(tensor, batch, count) for tensor, count in ((query, heads), (key, groups), (value, groups))
    )


def _four_dimensions(tensor: Tensor, batch: tuple[int, ...], heads: int) -> Tensor:
    own, rows = _heads(tensor), tensor.shape[-2:]
    if own not in (1, heads):
        tensor = tensor.repeat_interleave(heads // own, -3)
    expanded = tensor.expand(*batch, heads, *rows)
    return expanded if len(batch) == 1 else expanded.reshape(math.prod(batch), heads, *rows)


def _broadcast_mask(mask: Tensor, lead: tuple[int, ...], full: tuple[int, ...]) -> Tensor:
    """The mask over (batch, heads, queries, keys), without a copy where its strides allow that."""
    shape = *lead, *full[2:]
    try:
        expanded = mask.expand(shape)
    except RuntimeError:
        raise RuntimeError(
            f"attn_mask has shape {tuple(mask.shape)}: expected one that broadcasts to {shape}"
        ) from None
    if expanded.dim() < 4:
        return expanded[(None,) * (4 - expanded.dim())]
    return expanded if expanded.dim() == 4 else expanded.reshape(full)
