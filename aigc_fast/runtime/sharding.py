"""Ops on DTensors: each process computes the rows that it has, or the whole, by the kernels that tensors get."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_fast.runtime.rows import Rows, Window


class Sharding:
    """How an op is split over processes.

    Args:
        rows: the places of the arguments whose first dimension is the batch's, as all results' is.
        key: the place of the key of random numbers; None for an op without.
        numbers: how many random numbers a row takes, by the op's arguments; as many as the first has, by default.
    """

    def __init__(self, rows: Sequence[int], key: int | None = None, numbers: Callable[..., int] | None = None) -> None:
        self.rows, self.key = frozenset(rows), key
        self.numbers = numbers or (lambda *args: args[0].shape[1:].numel())

    def run(self, op: Callable[..., Any], args: Sequence[Any]) -> Any:
        """What the op makes of DTensors, of which those of rows are sharded along them and all others replicated.

        Returns:
            DTensors, sharded likewise; None where the tensors are no DTensors, or lie in another way.
        """
        module = sys.modules.get("torch.distributed.tensor")
        tensors = {} if module is None else {i: arg for i, arg in enumerate(args) if isinstance(arg, module.DTensor)}
        if 0 not in tensors:
            return None
        mesh, placements = tensors[0].device_mesh, tensors[0].placements
        dims = [dim for dim, placement in enumerate(placements) if placement.is_shard(0)]
        if len(dims) != 1 or not all(self._fits(place, arg, args[0]) for place, arg in enumerate(args)):
            return None
        local = list(args)
        partial = tuple(module.Partial() if dim in dims else module.Replicate() for dim in range(mesh.ndim))
        for place, tensor in tensors.items():
            local[place] = _ToLocal.apply(tensor, placements if tensor.placements == placements else partial)
        total, parts, part = tensors[0].shape[0], mesh.size(dims[0]), mesh.get_coordinate()[dims[0]]
        size = -(-total // parts)
        rows = Rows(range(min(part * size, total), min((part + 1) * size, total)), total)
        return _wrapped(self._of_rows(op, local, rows), mesh, placements, total)

    def _fits(self, place: int, arg: Any, first: Tensor) -> bool:
        if not isinstance(arg, Tensor):
            return True
        mesh = getattr(arg, "device_mesh", None)
        if place == self.key:
            return mesh is None
        has_rows = place in self.rows and arg.shape[0] == first.shape[0] != 1
        if mesh is None:
            return not has_rows and not arg.requires_grad
        wanted = first.placements if has_rows else None
        return mesh == first.device_mesh and (
            arg.placements == wanted if has_rows else all(placement.is_replicate() for placement in arg.placements)
        )

    def _of_rows(self, op: Callable[..., Any], args: list[Any], rows: Rows) -> Any:
        if self.key is None or args[self.key] is None or not rows.count:
            return op(*args)
        window = Window(rows, self.numbers(*args))
        own = [i for i in self.rows if isinstance(args[i], Tensor) and len(args[i]) == rows.count]
        put = [window.put(arg) if i in own else arg for i, arg in enumerate(args)]
        put[self.key] = window.key(args[self.key])
        return window.cut(op(*put))


def run_replicated(op: Callable[..., Any], args: Sequence[Any]) -> Any:
    """What the op makes of DTensors, lists of them among its arguments, that every process has whole.

    Returns:
        DTensors, replicated likewise; None where the tensors are no DTensors, or lie in another way.
    """
    module = sys.modules.get("torch.distributed.tensor")
    if module is None:
        return None
    items = [item for arg in args for item in (arg if isinstance(arg, (tuple, list)) else (arg,))]
    tensors = [item for item in items if isinstance(item, Tensor)]
    mesh = next((tensor.device_mesh for tensor in tensors if isinstance(tensor, module.DTensor)), None)
    if mesh is None or not all(_is_whole(tensor, mesh, module.DTensor) for tensor in tensors):
        return None
    placements = (module.Replicate(),) * mesh.ndim

    def local(item: Any) -> Any:
        return _ToLocal.apply(item, placements) if isinstance(item, module.DTensor) else item

    found = op(*(type(arg)(map(local, arg)) if isinstance(arg, (tuple, list)) else local(arg) for arg in args))
    return _wrapped(found, mesh, placements)


def _is_whole(tensor: Tensor, mesh: Any, dtensor: type) -> bool:
    if not isinstance(tensor, dtensor):
        return not tensor.requires_grad
    return tensor.device_mesh == mesh and all(placement.is_replicate() for placement in tensor.placements)


class _ToLocal(torch.autograd.Function):
    """What this process has of a DTensor, whose gradient lies as the placements say.

    PyTorch's `to_local` and `from_local` have derivatives of the first order alone, in old versions and where a
    gradient is laid anew.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Any, placements: tuple[Any, ...]) -> Tensor:
        ctx.mesh, ctx.placements, ctx.total = tensor.device_mesh, placements, tensor.shape[0] if tensor.dim() else None
        local = tensor.to_local()
        return local.view_as(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, None]:
        return _FromLocal.apply(gradient, ctx.mesh, ctx.placements, ctx.total), None


class _FromLocal(torch.autograd.Function):
    """A DTensor of what each process has, of so many rows in all."""

    @staticmethod
    def forward(ctx: Any, found: Tensor, mesh: Any, placements: tuple[Any, ...], total: int | None) -> Any:
        ctx.mesh, ctx.placements = mesh, placements
        shape = found.shape if total is None else (total, *found.shape[1:])
        whole = torch.empty(shape, device="meta")
        # A part that is dense, in whatever order, is a part of what lies likewise.
        order = sorted(range(found.dim()), key=found.stride, reverse=True)
        like = whole.permute(order).contiguous().permute([order.index(dim) for dim in range(found.dim())])
        dtensor = sys.modules["torch.distributed.tensor"].DTensor
        return dtensor.from_local(found, mesh, placements, run_check=False, shape=whole.shape, stride=like.stride())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Tensor, None, None, None]:
        replicate = sys.modules["torch.distributed.tensor"].Replicate()
        wanted = tuple(replicate if placement.is_partial() else placement for placement in ctx.placements)
        laid = gradient if gradient.placements == wanted else gradient.redistribute(ctx.mesh, wanted)
        return _ToLocal.apply(laid, ctx.placements), None, None, None


def _wrapped(found: Any, mesh: Any, placements: tuple[Any, ...], total: int | None = None) -> Any:
    if isinstance(found, tuple):
        return tuple(_wrapped(each, mesh, placements, total) for each in found)
    return _FromLocal.apply(found, mesh, placements, total)
