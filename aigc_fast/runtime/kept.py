"""Packed weights, kept from one call to the next where that is safe: every op's, in one store whose memory is capped.

An op says how it wants weights of one kind by a `Packing`: a key, a size and what packs. What was packed lasts as long
as the weight, and is packed again when the weight has changed.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast.environment import byte_setting
from aigc_fast.runtime import backends, native
from aigc_fast.runtime.locks import lock
from aigc_fast.runtime.machine import machine_bytes
from aigc_fast.runtime.memory import footprint, lasting

KEPT_VARIABLE = "AIGC_FAST_KEPT_BYTES"
PATIENCE = 1000  # calls
READ_WHOLE = 1 << 14  # elements
MANY_USES = 128
# From so many uses of each element on, packing the weight is at most 3 % of the call; with 1,024 it is up to a third.
# Of CPU time on one thread, AVX-512 BF16, Intel Xeon, torch 2.13.0, 2026-11-29; kernels 3 and 4, 64 to 512 channels.
USES_WORTH_PACKING = 1 << 12
_SHARE_OF_MACHINE = 4
_WEIGHTS = Tensor, nn.Parameter

REFUSED: Final = object()
_LEFT = -1


def fingerprint(tensor: Tensor, uses: int) -> int:
    """A number that changes with the elements, also by writes that the version counter misses: `weight.data`, NumPy.

    Args:
        tensor: on the CPU, its elements without gaps.
        uses: multiplications with each element in the call. Where there are so few that to read all elements would
            take as long as the call, a few cache lines in every page stand for the rest.
    """
    return native.kernels().digest(tensor.data_ptr(), *_read_of(tensor, uses))


def _read_of(tensor: Tensor, uses: int) -> tuple[int, bool]:
    """The tensor's bytes, and whether a fingerprint reads all of them."""
    return tensor.nbytes, tensor.numel() <= READ_WHOLE or uses >= MANY_USES


class Slot:
    """What is kept of one weight under one key.

    Attributes:
        value: what was made of the weight, REFUSED where it can't be made of it, None where nothing is kept.
        stamp: what the weight looked like then: its version and its fingerprint.
        seen: what it looked like in the last call.
        memory: where `value` lies; used again when the weight has changed.
        room: bytes that are taken of the store's cap, 0 before it was admitted.
        refused: the store's `freed` when there was no room, _LEFT since it left; None where neither has been.
        used: the number of the last call.
    """

    __slots__ = ("memory", "refused", "room", "seen", "stamp", "used", "value")

    def __init__(self) -> None:
        self.used, self.refused = 0, None
        self.clear()

    def clear(self) -> None:
        """Gives back all that it holds."""
        self.value = self.stamp = self.seen = self.memory = None
        self.room = 0


class _Entry(NamedTuple):
    storage: weakref.ref[torch.UntypedStorage]
    slots: dict[Hashable, Slot]
    sealed: bool = False

    @property
    def room(self) -> int:
        return sum(slot.room for slot in list(self.slots.values()))

    @property
    def derived(self) -> list[Tensor]:
        """Weights that were made of this one, which may be packed themselves."""
        values = [slot.value for slot in list(self.slots.values()) if isinstance(slot.value, tuple)]
        return [item for value in values for item in value if isinstance(item, Tensor)]


class Store:
    """What is kept of weights, by weight and key, and the memory that it takes.

    Room is given once: to what asks first, as long as the cap allows. What got none doesn't ask again before something
    kept has died or was released. Only what was unused for `PATIENCE` calls leaves for others, and comes back only into
    room that is free, so that weights that don't fit together never push each other out in turn.

    Args:
        cap: bytes that all may take together; 0 keeps nothing.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.freed = 0
        self._entries: dict[int, _Entry] = {}
        self._calls = itertools.count(1)
        self._admission = lock(reentrant=True)

    def slot_of(self, weight: Tensor, key: Hashable, pointer: int | None = None) -> Slot:
        """The slot of a weight under a key, marked as used; `pointer`: where the weight lies, for who knows it."""
        if pointer is None:
            pointer = weight.data_ptr()
        entry = self._entries.get(pointer)
        if entry is None:
            entry = self._begin(weight, pointer)
        slot = entry.slots.get(key)
        if slot is None:
            slot = entry.slots.setdefault(key, Slot())
        slot.used = next(self._calls)
        return slot

    def _begin(self, weight: Tensor, pointer: int) -> _Entry:
        def forget(reference: weakref.ref[torch.UntypedStorage]) -> None:
            entry = self._entries.get(pointer)
            if entry is not None and entry.storage is reference:
                self._drop(pointer)

        # Keyed by the memory, not by the tensor: autograd and `detach` make new tensors of the same. Nor is there a
        # weak reference to a tensor: `torch.utils.swap_tensors` refuses one that has it.
        entry = _Entry(weakref.ref(weight.untyped_storage(), forget), {})
        self._entries[pointer] = entry
        return entry

    def seal(self, weight: Tensor) -> None:
        """Says that nobody writes to a weight that was just made: what is kept of it lasts without a look at it."""
        pointer = weight.data_ptr()
        self._entries[pointer] = self._begin(weight, pointer)._replace(sealed=True)

    def is_sealed(self, pointer: int) -> bool:
        """Whether the weight that lies there was sealed."""
        entry = self._entries.get(pointer)
        return entry is not None and entry.sealed

    # Runs whenever the garbage collector does, inside anything: it must not wait for a lock.
    def _drop(self, pointer: int) -> None:
        entry = self._entries.pop(pointer, None)
        if entry is not None and entry.room:
            self.freed += 1

    def hold(self, slot: Slot, nbytes: int) -> bool:
        """Whether the slot has, or gets, room for so many bytes."""
        if slot.room:
            return True
        if slot.refused == self.freed:
            return False
        with self._admission:
            free = self.cap - self.total()
            if nbytes <= free or (slot.refused is None and self._make_room(nbytes - free, slot.used)):
                slot.room, slot.refused = nbytes, None
                return True
            slot.refused = self.freed
        return False

    def _make_room(self, missing: int, now: int) -> bool:
        unused = [slot for slot in self._slots() if slot.room and now - slot.used > PATIENCE]
        if sum(slot.room for slot in unused) < missing:
            return False
        for slot in sorted(unused, key=lambda slot: slot.used):
            if missing > 0:
                missing -= slot.room
                slot.clear()
                slot.refused = _LEFT
        return True

    def _slots(self) -> list[Slot]:
        return [slot for entry in list(self._entries.values()) for slot in list(entry.slots.values())]

    def total(self) -> int:
        """Bytes that are taken now."""
        return sum(entry.room for entry in list(self._entries.values()))

    def bytes_of(self, weights: Iterable[Tensor]) -> int:
        """Bytes that are taken by what is kept of these weights, and of what was made of them."""
        entries = [entry for pointer in self._of(weights) if (entry := self._entries.get(pointer)) is not None]
        derived = [tensor for entry in entries for tensor in entry.derived]
        return sum(entry.room for entry in entries) + (self.bytes_of(derived) if derived else 0)

    def release(self, weights: Iterable[Tensor]) -> None:
        """Gives back all that is kept of these weights; what was made of them dies with it."""
        for pointer in self._of(weights):
            self._drop(pointer)

    def _of(self, weights: Iterable[Tensor]) -> set[int]:
        pointers = {weight.data_ptr() for weight in weights if type(weight) in _WEIGHTS and weight.numel()}
        return pointers & self._entries.keys()


store = Store(byte_setting(KEPT_VARIABLE, machine_bytes() // _SHARE_OF_MACHINE))
_thread = threading.local()
_filling = lock()


def _workspace(nbytes: int) -> Tensor:
    """Memory for a packed weight that only one call needs: fresh pages would cost more than the packing."""
    buffer = getattr(_thread, "workspace", None)
    if buffer is None or buffer.nbytes < nbytes:
        with torch.inference_mode(False):
            buffer = _thread.workspace = lasting(nbytes)
    return buffer


def _memory(nbytes: int) -> Tensor:
    """Memory for a packed weight that is kept: the workspace where it was made for the like, since the last call."""
    buffer = getattr(_thread, "workspace", None)
    if buffer is None or footprint(buffer.nbytes) != footprint(nbytes):
        return lasting(nbytes)
    _thread.workspace = None
    return buffer


_numbers: dict[Hashable, int] = {}
_new_numbers = itertools.count()


def _number(key: Hashable) -> int:
    """A key's number: every call looks it up, and a tuple is hashed anew each time."""
    return _numbers.setdefault(key, next(_new_numbers))


class Packing:
    """How one algorithm wants weights of one shape, strides and dtype.

    Args:
        key: tells it from every other packing of the same weight.
        nbytes: of the packed weight.
        fill: packs a weight into the memory at an address; false where it can't be packed.
        uses: as for `fingerprint`.
        dense: whether the weights' memory is without gaps and overlaps, which would upset the fingerprint; others are
            packed at every call, from a copy.
    """

    def __init__(
        self, key: Hashable, nbytes: int, fill: Callable[[Tensor, int], Any], uses: int, dense: bool = True
    ) -> None:
        self._key, self._nbytes, self._fill, self._uses, self._dense = _number(key), nbytes, fill, uses, dense
        self._room = footprint(nbytes)
        # What a fingerprint reads of the weights, told by the first one.
        self._read: tuple[int, bool] | None = None

    def of(self, weight: Tensor) -> Tensor | None:
        """The packed weight, kept or packed for this call; None where it can't be packed or has no room."""
        found = self._found(weight)
        if found is None:
            return self.once(weight)
        return None if found is REFUSED else found

    def without_room(self, weight: Tensor) -> Tensor | None:
        """The weight packed for this call, where it has no room.

        None where it can't be packed, and where automatic choice had better leave the call to PyTorch.
        """
        if self._uses < USES_WORTH_PACKING and backends.current() == "auto":
            return None
        return self.once(weight)

    def kept(self, weight: Tensor) -> Tensor | None:
        """The packed weight, from the second call with the same weight on.

        None where it can't be packed or has no room, where its gradient is wanted, and where it was written to since
        the last call: in training every step has new weights, and most of them are used once.
        """
        found = self._found(weight)
        return None if found is REFUSED else found

    def _found(self, weight: Tensor) -> Any:
        if not self._dense or weight.is_inference() or (weight.requires_grad and torch.is_grad_enabled()):
            return None
        if self._room > store.cap:
            return REFUSED
        pointer = weight.data_ptr()
        slot = store.slot_of(weight, self._key, pointer)
        if slot.refused is not None and not store.hold(slot, self._room):
            return REFUSED
        if self._read is None:
            self._read = _read_of(weight, self._uses)
        digest = 0 if store.is_sealed(pointer) else native.kernels().digest(pointer, *self._read)
        now = weight._version, digest
        if slot.stamp == now:
            return slot.value
        if slot.seen == now:
            return self._keep(slot, weight, now)
        slot.seen = now
        return None

    def _keep(self, slot: Slot, weight: Tensor, now: tuple[int, int]) -> Any:
        # While another thread packs, this call packs for itself.
        if not _filling.acquire(blocking=False):
            return None
        try:
            if slot.stamp != now:
                if not store.hold(slot, self._room):
                    return REFUSED
                slot.stamp = None
                memory = slot.memory = _memory(self._nbytes) if slot.memory is None else slot.memory
                slot.value = memory if self._fill(weight, memory.data_ptr()) else REFUSED
                slot.stamp = now
            return slot.value
        finally:
            _filling.release()

    def once(self, weight: Tensor) -> Tensor | None:
        """The weight packed for this call, until the thread packs another; None where it can't be packed."""
        packed = _workspace(self._nbytes)
        return packed if self._fill(weight if self._dense else weight.contiguous(), packed.data_ptr()) else None


def cast(weight: Tensor, dtype: torch.dtype, uses: int) -> Tensor:
    """The weight on the CPU in another dtype, of which no gradient is wanted; kept where that is safe.

    Args:
        weight: of any strides and dtype.
        dtype: that is asked for.
        uses: as for `fingerprint`.
    """
    made = torch.empty_like(weight, dtype=dtype, device="meta")
    # Gaps and overlaps, which would upset the fingerprint, are not made again.
    dense = weight.numel() > 0 and made.stride() == weight.stride()
    if weight.dtype == dtype or weight.is_inference() or not dense or native.cpu_reason() is not None:
        return weight.to(dtype)
    slot = store.slot_of(weight, ("cast", dtype))
    if not store.hold(slot, made.nbytes):
        return weight.to(dtype)
    now = weight._version, 0 if store.is_sealed(weight.data_ptr()) else fingerprint(weight, uses)
    held = slot.value
    if held is None or slot.stamp != now:
        with torch.inference_mode(False):
            held = slot.value = (weight.detach().to(dtype),)
        store.seal(held[0])
        slot.stamp = now
    return held[0]
