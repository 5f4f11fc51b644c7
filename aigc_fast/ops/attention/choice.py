"""Where PyTorch's own attention is as fast or faster, or all there is: what automatic choice leaves to it, and why."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aigc_fast.ops.attention import cpu, cuda
from aigc_fast.ops.attention.limits import (
    EVEN_PAIRS,
    FEW_POSITIONS,
    LEAST_LENGTH,
    LEAST_WIDEST_QUERIES,
    LIGHT_HALF,
    LIGHT_SINGLE_HALF,
    LIGHT_WORK,
    MANY_KEYS,
    WIDE_HEAD,
    WIDE_QUERIES,
    WIDEST_HEAD,
)
from aigc_fast.runtime import devices, rows
from aigc_fast.runtime.backends import is_automatic
from aigc_fast.runtime.devices import Reason
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32
from aigc_fast.runtime.machine import is_intels
from aigc_fast.runtime.native import has_wide_vectors, rounds_natively
from aigc_fast.runtime.operator import functorch_level, is_compiling, is_watched, plain_eager

# PyTorch's kernel for sequences of various lengths: what it computes in, and its heads' sizes.
_OF_16_BITS = torch.bfloat16, torch.float16
_MOST_FLASH_SIZE, _EVEN_FLASH_SIZE = 256, 8
# What a program of Triton's keeps at a time, and the rows, queries of heads that share keys, of its smallest block.
MOST_TRITON_SIZE, FEW_TRITON_ROWS = 256, 16
# Four times as many are counted in 32 bits.
_MOST_TRITON_ROWS = 2**29 - 1

_grad_enabled = torch.is_grad_enabled
_float32 = torch.float32


def _needs_gradient(query: Tensor, key: Tensor, value: Tensor) -> bool:
    return _grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)


def is_open() -> bool:
    """Whether a call may become PyTorch's own for its speed: not with a forced backend, where that is transformed, or
    where a compiled graph takes the op, whose choice puts no conditions on symbolic sizes."""
    return not (is_compiling() or functorch_level() is not None or forward_ad._current_level >= 0) and is_automatic()


def has_a_twin(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> bool:
    """Whether PyTorch's function takes the call, and gives the same.

    Its fast path has no derivative but the first, and takes wrong lengths.
    """
    # It hides keys before it scales: scores of minus infinity become NaN, or are turned round.
    if is_causal and (mask is not None or (scale is not None and scale <= 0)):
        return False
    of_key, of_value = key.shape, value.shape
    if of_value[:-1] != of_key[:-1] or not query.dim() == len(of_key) == len(of_value):
        return False
    if mask is not None and (mask.dtype not in (torch.bool, query.dtype) or mask.requires_grad):
        return False
    return not _needs_gradient(query, key, value)


def is_light(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> bool:
    """Whether PyTorch's call costs less than ours, where it does not lend the kernels its tensors.

    Asked before anything else is looked at.
    """
    if not is_open():
        return False
    work = query.numel() * key.shape[-2]
    if work >= LIGHT_WORK or not has_a_twin(query, key, value, mask, is_causal, scale):
        return False
    if query.dtype is not _float32 and work >= (LIGHT_HALF if query.size(-2) > 1 else LIGHT_SINGLE_HALF):
        return False
    return not cpu.takes_at_once(query)


def is_left(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch's kernel is faster where nothing is hidden: of wide heads, and of some bfloat16 ones."""
    if query.dtype is _float32:
        return _has_wide_heads(query, key, value)
    if query.dtype is not torch.bfloat16 or not (rounds_natively() and is_intels()):
        return False
    if not _is_faster_in_pairs(query, key):
        return False
    return not _needs_gradient(query, key, value) and is_open()


def _is_faster_in_pairs(query: Tensor, key: Tensor) -> bool:
    """Whether PyTorch's products of bfloat16 are faster than ours, which are of float32 for a single query."""
    if query.size(-2) == 1:
        # Keys that heads share are made float32 once for all of them.
        return key.size(-2) >= MANY_KEYS and query.shape[:-2] == key.shape[:-2]
    size = query.size(-1)
    return size > EVEN_PAIRS and size % EVEN_PAIRS != 0


def _has_wide_heads(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether heads are so wide that PyTorch's product is faster, and its fast path open."""
    size = query.size(-1)
    if size < WIDE_HEAD or has_wide_vectors():
        return False
    queries = query.size(-2)
    if queries < LEAST_WIDEST_QUERIES or (size < WIDEST_HEAD and queries not in WIDE_QUERIES):
        return False
    fast = value.size(-1) == size and query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    return fast and not _needs_gradient(query, key, value) and is_open()


def leave_for_speed(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None
) -> Reason:
    """Why PyTorch's function had better have a call without dropout or a window, or None."""
    if not is_open():
        return None
    if mask is None and not is_causal and is_left(query, key, value):
        return f"heads of {query.size(-1)} numbers in {query.dtype}, nothing hidden: PyTorch's product is faster"
    if is_light(query, key, value, mask, is_causal, scale):
        return "small: PyTorch's call costs less"
    return None


def _is_narrow(left: int, right: int, offset: int, keys: int) -> bool:
    """Whether a band hides keys otherwise than PyTorch's causality does."""
    hides = left >= 0 or 0 <= right < keys - 1 - offset
    return hides and (left, right, offset) != (-1, 0, 0)


def _kernels_take(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float) -> bool:
    """Whether a card's kernels take a call, with its gradients where they are wanted."""
    asked = query, key, value, mask
    if triton_unsupported(*asked) is not None and (dropout_p > 0.0 or cuda.unsupported(*asked) is not None):
        return False
    return not _needs_gradient(query, key, value) or triton_backward_unsupported(query, *asked) is None


def leave(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    band: tuple[int, int, int],
    finite: bool,
    simple: bool,
) -> Reason:
    """Why a call is PyTorch's own, whatever it costs, or None.

    Args:
        query, key, value, mask, dropout_p: as for the public function; no generator was given.
        band: left, right and offset, as for `reference.band`.
        finite: whether the scale is.
        simple: whether the op takes query, key and value as they are, on the CPU.
    """
    if not (is_compiling() or (plain_eager() and is_automatic())):
        return None
    if not finite:
        return "the scale is not finite: what comes of it is a matter of PyTorch's path, and of its version"
    learned = mask is not None and mask.requires_grad
    if simple and not learned:
        return None
    if dropout_p > 0.0 and rows.layouts:
        return None
    if not query.is_cpu:
        # A mask of all scores, no tile of which PyTorch's kernels skip, would stand for such a band.
        narrow = not learned and not is_compiling() and _is_narrow(*band, key.shape[-2])
        if narrow and _kernels_take(query, key, value, mask, dropout_p):
            return None
        return f"the tensors are on {query.device}: PyTorch's own kernels compute there"
    if dropout_p > 0.0:
        return None
    if learned:
        return "the mask's gradient is wanted, which the kernels do not make"
    if query.dtype not in UP_TO_FLOAT32 and not _needs_gradient(query, key, value):
        return f"{query.dtype}: PyTorch's own kernel computes in it"
    return None


@cache
def pytorchs_varlen(grouped: bool) -> Callable[..., Tensor] | None:
    """PyTorch's function for sequences of various lengths, where this torch has it with a band and, if `grouped`, for
    heads that share keys."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    wanted = {"scale", "window_size", *(["enable_gqa"] if grouped else [])}
    return varlen_attn if wanted <= inspect.signature(varlen_attn).parameters.keys() else None


def leave_varlen(query: Tensor, key: Tensor, value: Tensor, scale: float, is_plain: bool) -> Reason:
    """Why a call with sequences of various lengths is PyTorch's own, or None.

    Args:
        query, key, value, scale: as for the public function.
        is_plain: whether nothing is asked for but the output: no dropout, sums, splits or cache.
    """
    if not (query.is_cuda and is_plain and query.dtype in _OF_16_BITS and plain_eager() and is_automatic()):
        return None
    size, tensors = query.shape[2], (query, key, value)
    fits = value.shape[2] == size <= _MOST_FLASH_SIZE and size % _EVEN_FLASH_SIZE == 0 and 0.0 < scale < math.inf
    if not (fits and all(tensor.numel() and tensor.stride(2) == 1 for tensor in tensors)):
        return None
    # It is told the greatest lengths, at which a capture cannot look.
    if torch.cuda.is_current_stream_capturing() or devices.too_old_for_triton(query.device.index) is not None:
        return None
    if pytorchs_varlen(key.shape[1] != query.shape[1]) is None:
        return None
    return f"{query.dtype} on {query.device}: PyTorch's own kernel computes there"


def leave_projections(query: Tensor, key: Tensor, value: Tensor, even_heads: bool, training: bool) -> bool:
    """Whether PyTorch's one call for projections and attention of (batch, length, size) is faster than the parts."""
    if is_watched():  # a choice by size would hold for no other in a graph, not even to torch 2.6's fake tensors
        return False
    same = query is key and key is value and query.dim() == 3 and even_heads
    return same and query.shape[0] * query.shape[1] <= FEW_POSITIONS and not (training or _grad_enabled())


def leave_layer(length: int) -> bool:
    """Whether PyTorch's call for a whole layer at inference is faster than the layer's parts."""
    if is_watched():
        return False
    return length < LEAST_LENGTH


def triton_unsupported(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Reason:
    """Why Triton's kernels cannot take these arguments, or None."""
    return _triton_unsupported(-2, query, key, value, *rest)


def triton_backward_unsupported(grad: Tensor, query: Tensor, *rest: object) -> Reason:
    """Why Triton's kernels cannot take these arguments, or None."""
    return triton_unsupported(query, *rest)


def triton_varlen_unsupported(query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Reason:
    """Why Triton's kernels cannot take these arguments of various lengths, or None."""
    return _triton_unsupported(0, query, key, value, *rest)


def triton_varlen_backward_unsupported(grad: Tensor, query: Tensor, *rest: object) -> Reason:
    """Why Triton's kernels cannot take these arguments of various lengths, or None."""
    return triton_varlen_unsupported(query, *rest)


def triton_detail(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *rest: object) -> str:
    """Which of Triton's kernels take these arguments."""
    skipped = "a list of the tiles that a mask shows" if mask is not None else "tiles that the band shows alone"
    few = query.shape[1] // max(1, key.shape[1]) * query.shape[2] <= FEW_TRITON_ROWS
    return "few queries: keys in parts" if few else f"blocks of queries: {skipped}"


def _triton_unsupported(lengths: int, query: Tensor, key: Tensor, value: Tensor, *rest: object) -> Reason:
    size, queries, keys = max(query.shape[-1], value.shape[-1]), query.shape[lengths], key.shape[lengths]
    if size > MOST_TRITON_SIZE:
        return f"heads of {size} numbers: Triton's kernels take up to {MOST_TRITON_SIZE}"
    heads = query.numel() // max(1, queries * query.shape[-1])
    if (queries + keys) * heads > _MOST_TRITON_ROWS:
        return f"{queries} queries and {keys} keys of {heads} heads: Triton's kernels take up to {_MOST_TRITON_ROWS}"
    others = (given for given in rest if isinstance(given, Tensor))
    return devices.triton(query.dtype, query, key, value, *others)
