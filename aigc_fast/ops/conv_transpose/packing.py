"""Weights in the layout that the convolution kernels read, kept from one call to the next where that is safe."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.conv_transpose.plan import is_dense, strides_of_axes
from aigc_fast.runtime import native

READ_WHOLE = 1 << 14  # elements
MANY_USES = 128
HUGE_PAGE = 1 << 21  # bytes


class _Packed(NamedTuple):
    data: Tensor | None
    version: int
    fingerprint: int


class _Entries(NamedTuple):
    storage: weakref.ref[torch.UntypedStorage]
    pointer: int
    by_packing: dict[Hashable, _Packed]


_kept: dict[int, _Entries] = {}
_thread = threading.local()


def _entries_of(weight: Tensor, pointer: int) -> dict[Hashable, _Packed]:
    identity = id(weight)
    found = _kept.get(identity)
    if found is not None and found.pointer == pointer:
        return found.by_packing

    def forget(reference: weakref.ref[torch.UntypedStorage]) -> None:
        if identity in _kept and _kept[identity].storage is reference:
            del _kept[identity]

    # Not to the tensor: `torch.utils.swap_tensors` refuses one that has a weak reference.
    found = _kept[identity] = _Entries(weakref.ref(weight.untyped_storage(), forget), pointer, {})
    return found.by_packing


def fingerprint(tensor: Tensor, uses: int) -> int:
    """A number that changes with the elements, also by writes that the version counter misses: `weight.data`, NumPy.

    Args:
        tensor: on the CPU, its elements without gaps.
        uses: multiplications with each element in the call. Where there are so few that to read all elements would
            take as long as the call, a few cache lines in every page stand for the rest.
    """
    elements = tensor.numel()
    whole = elements <= READ_WHOLE or uses >= MANY_USES
    return native.cpu.kernels.digest(tensor.data_ptr(), elements * tensor.element_size(), whole)


def _aligned(size: int) -> Tensor:
    """Memory for a packed weight, whole huge pages where it is large: every call reads all of it."""
    nbytes = size * torch.float32.itemsize
    if nbytes < HUGE_PAGE // 2:
        return torch.empty(size, dtype=torch.float32)
    rounded = -(-nbytes // HUGE_PAGE) * HUGE_PAGE
    memory = torch.empty(rounded + HUGE_PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % HUGE_PAGE
    packed = memory[first : first + rounded].view(torch.float32)
    native.use_huge_pages(packed.data_ptr(), packed.nbytes)
    return packed


def _workspace(size: int) -> Tensor:
    """Memory for a packed weight that only one call needs: fresh pages would cost more than the packing."""
    buffer = getattr(_thread, "workspace", None)
    if buffer is None or buffer.numel() < size:
        with torch.inference_mode(False):
            buffer = _thread.workspace = _aligned(size)
    return buffer


class Packing:
    """How one algorithm wants the weights of one geometry.

    Args:
        weight: whose strides all weights will have.
        dtype: the code of its dtype.
        in_layout, out_layout: of `plan.layout`.
        geometry: `Plan.packed_geometry`.
        method: the algorithm.
        uses: as for `fingerprint`.
    """

    def __init__(
        self, weight: Tensor, dtype: int, in_layout: bytes, out_layout: bytes, geometry: bytes, method: int, uses: int
    ) -> None:
        self.dtype, self.geometry, self.method = dtype, geometry, method
        self.in_layout, self.out_layout = in_layout, out_layout
        self.size = native.cpu.kernels.conv_packed_size(in_layout, out_layout, geometry, method)
        # Gaps or overlaps would upset fingerprint and packing.
        self._dense = is_dense(weight)
        self._uses = uses
        # Of the layouts only the channels matter and, for one pixel, their order: the weight itself gives both.
        self._key = (native.cpu.level, dtype, tuple(weight.shape), weight.stride(), geometry, method, self.size)

    def pack(self, weight: Tensor, keep: bool) -> Tensor | None:
        """The packed weight, in memory of its own or in what the next call uses again."""
        packed = _aligned(self.size) if keep else _workspace(self.size)
        fine = native.cpu.kernels.conv_pack(
            weight.data_ptr(),
            self.dtype,
            strides_of_axes(weight),
            self.in_layout,
            self.out_layout,
            self.geometry,
            self.method,
            packed.data_ptr(),
        )
        return packed if fine else None

    def of(self, weight: Tensor) -> Tensor | None:
        """The packed weight, kept or not. None where the weight is not finite."""
        packed = self.kept(weight)
        return packed if packed is not None else self.pack(weight if self._dense else weight.contiguous(), keep=False)

    def kept(self, weight: Tensor) -> Tensor | None:
        """The packed weight, from the second call with the same weight on.

        None where it is not finite, where its gradient is wanted, and where it has been written to since the last call:
        in training every step has new weights, and most of them are used once.
        """
        if not self._dense or weight.is_inference() or (weight.requires_grad and torch.is_grad_enabled()):
            return None
        entries = _entries_of(weight, weight.data_ptr())
        entry = entries.get(self._key)
        now = weight._version, fingerprint(weight, self._uses)
        current = entry is not None and entry[1:] == now
        if current and entry.data is not None:
            return entry.data
        data = self.pack(weight, keep=True) if current else None
        entries[self._key] = _Packed(data, *now)
        return data
