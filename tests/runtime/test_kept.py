"""The store of packed weights: who gets room, who keeps it, who leaves, and what is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from aigc_fast.environment import byte_setting
from aigc_fast.runtime import kept, memory, native
from aigc_fast.runtime.kept import PATIENCE, Packing, Slot, Store
from aigc_fast.runtime.machine import machine_bytes

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def weights(count: int) -> list[Tensor]:
    return [torch.ones(4) for _ in range(count)]


def slots_of(store: Store, found: list[Tensor]) -> list[Slot]:
    return [store.slot_of(weight, "key") for weight in found]


def call(store: Store, weight: Tensor, times: int) -> None:
    for _ in range(times):
        store.slot_of(weight, "key")


def test_room_is_given_as_long_as_the_cap_allows() -> None:
    store, three = Store(100), weights(3)
    slots = slots_of(store, three)
    assert [store.hold(slot, 40) for slot in slots] == [True, True, False]
    assert store.hold(slots[0], 40)
    assert store.total() == 80
    assert store.hold(store.slot_of(three[2], "a smaller one"), 20)
    assert store.total() == 100


def test_a_cap_of_zero_keeps_nothing() -> None:
    store, one = Store(0), weights(1)
    assert not store.hold(*slots_of(store, one), 1)


def test_who_got_no_room_asks_again_when_something_died() -> None:
    store, two = Store(100), weights(2)
    slots = slots_of(store, two)
    assert [store.hold(slot, 60) for slot in slots] == [True, False]
    assert not store.hold(slots[1], 60)
    del two[0]
    assert store.total() == 0
    assert store.hold(slots[1], 60)


def test_who_got_no_room_asks_again_when_something_was_released() -> None:
    store, two = Store(100), weights(2)
    slots = slots_of(store, two)
    assert [store.hold(slot, 60) for slot in slots] == [True, False]
    store.release(two[:1])
    assert store.total() == 0
    assert store.hold(slots[1], 60)


def test_nobody_leaves_who_was_used_within_a_thousand_calls() -> None:
    store, (old, new, other) = Store(100), weights(3)
    store.hold(store.slot_of(old, "key"), 60)
    call(store, other, PATIENCE - 1)
    assert not store.hold(store.slot_of(new, "key"), 60)


def test_who_was_unused_for_a_thousand_calls_leaves_when_room_is_needed() -> None:
    store, (old, new, other) = Store(100), weights(3)
    store.hold(store.slot_of(old, "key"), 60)
    call(store, other, PATIENCE)
    assert store.total() == 60
    assert store.hold(store.slot_of(new, "key"), 80)
    assert store.total() == 80
    # And doesn't push out in turn.
    call(store, other, 2 * PATIENCE)
    assert not store.hold(store.slot_of(old, "key"), 60)
    del new
    assert store.hold(store.slot_of(old, "key"), 60)


def test_nobody_leaves_where_that_would_not_be_enough() -> None:
    store, (old, recent, new, other) = Store(100), weights(4)
    store.hold(store.slot_of(old, "key"), 40)
    call(store, other, PATIENCE)
    store.hold(store.slot_of(recent, "key"), 40)
    assert not store.hold(store.slot_of(new, "key"), 70)
    assert store.total() == 80


def test_more_weights_than_are_kept_for_their_calls_do_not_push_each_other_out() -> None:
    many = weights(PATIENCE + 50)
    store = Store(10 * 20)
    admitted = 0
    for _ in range(4):
        before, admitted = admitted, 0
        for weight in many:
            slot = store.slot_of(weight, "key")
            admitted += not slot.room and store.hold(slot, 20)
    assert (before, admitted) == (0, 0)


def test_bytes_of_views_count_for_the_weight() -> None:
    store, weight = Store(100), torch.ones(4)
    view = weight.detach()
    store.hold(store.slot_of(view, "key"), 30)
    assert store.bytes_of([weight]) == 30
    store.release([weight])
    assert store.total() == 0


def test_a_weight_at_another_address_is_another() -> None:
    store, weight = Store(100), torch.ones(4)
    store.hold(store.slot_of(weight, "key"), 30)
    weight.data = torch.ones(4)
    assert store.slot_of(weight, "key").room == 0
    assert store.total() == 0


class Fills:
    """Packs by copying, and counts."""

    def __init__(self, nbytes: int, fine: bool = True) -> None:
        self.count, self.fine = 0, fine
        self.packing = Packing(("a copy", id(self)), nbytes, self, uses=1)

    def __call__(self, weight: Tensor, address: int) -> bool:
        self.count += 1
        self.last = weight.clone()
        return self.fine


@needs_native
class TestPacking:
    def test_it_is_kept_from_the_second_call_on(self, room: Callable[[int], None]) -> None:
        room(1 << 20)
        weight, fills = torch.randn(2000), Fills(8000)
        found = [fills.packing.of(weight) for _ in range(5)]
        assert fills.count == 2
        assert found[1] is found[4]
        assert kept.store.bytes_of([weight]) == memory.footprint(8000)

    def test_a_changed_weight_is_packed_into_the_same_memory(self, room: Callable[[int], None]) -> None:
        room(1 << 20)
        weight, fills = torch.randn(2000), Fills(8000)
        before = [fills.packing.kept(weight) for _ in range(2)][1]
        weight += 1
        assert fills.packing.kept(weight) is None
        assert fills.packing.kept(weight) is before
        assert torch.equal(fills.last, weight)

    def test_what_can_not_be_packed_is_tried_once(self, room: Callable[[int], None]) -> None:
        room(1 << 20)
        weight, fills = torch.randn(2000), Fills(8000, fine=False)
        assert [fills.packing.kept(weight) for _ in range(5)] == [None] * 5
        assert fills.count == 1

    def test_what_never_fits_is_not_packed_at_all(self, room: Callable[[int], None]) -> None:
        room(0)
        weight, fills = torch.randn(2000), Fills(kept.store.cap + 1)
        assert [fills.packing.of(weight) for _ in range(5)] == [None] * 5
        assert fills.count == 0

    def test_what_finds_no_room_keeps_to_that(self, room: Callable[[int], None]) -> None:
        weight, other, fills = torch.randn(2000), torch.randn(2000), Fills(8000)
        kept.store.hold(kept.store.slot_of(other, "key"), 8000)
        room(7999)
        found = [fills.packing.of(weight) for _ in range(5)]
        assert [packed is None for packed in found] == [False, True, True, True, True]
        weight += 1
        assert fills.packing.of(weight) is None
        assert fills.count == 1

    def test_a_long_call_packs_for_itself_where_there_is_no_room(self, room: Callable[[int], None]) -> None:
        room(0)
        weight, fills = torch.randn(2000), Fills(kept.store.cap + 1000)
        long = Packing("long", kept.store.cap + 1000, fills, uses=kept.USES_WORTH_PACKING)
        assert [long.of(weight) for _ in range(3)] == [None] * 3
        assert all(long.without_room(weight) is not None for _ in range(3))
        assert fills.packing.without_room(weight) is None
        assert fills.count == 3
        assert kept.store.bytes_of([weight]) == 0

    def test_the_workspace_of_the_first_call_is_what_is_kept(self, room: Callable[[int], None]) -> None:
        room(1 << 30)
        nbytes = max(getattr(kept._thread, "workspace", torch.empty(0)).nbytes, memory.HUGE_PAGE) + memory.HUGE_PAGE
        weight, fills = torch.randn(2000), Fills(nbytes)
        first, second = (fills.packing.of(weight) for _ in range(2))
        assert first is second
        assert getattr(kept._thread, "workspace", None) is None

    def test_threads_share_it(self, room: Callable[[int], None]) -> None:
        room(1 << 20)
        weight, fills, start = torch.randn(2000), Fills(8000), threading.Barrier(4)

        def run(_: int) -> list[Tensor | None]:
            start.wait()
            return [fills.packing.kept(weight) for _ in range(200)]

        with ThreadPoolExecutor(4) as pool:
            found = [packed for each in pool.map(run, range(4)) for packed in each if packed is not None]
        assert fills.count == 1
        assert len({packed.data_ptr() for packed in found}) == 1

    def test_threads_stay_below_the_cap(self) -> None:
        store, many, start = Store(1000), weights(64), threading.Barrier(4)

        def run(index: int) -> int:
            start.wait()
            return sum(store.hold(store.slot_of(weight, "key"), 100) for weight in many[index::4])

        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(run, range(4))) == 10
        assert store.total() == 1000

    def test_a_thread_does_not_wait_while_another_packs(self, room: Callable[[int], None]) -> None:
        room(1 << 20)
        weight, fills = torch.randn(2000), Fills(8000)
        fills.packing.kept(weight)
        with kept._filling:
            assert fills.packing.kept(weight) is None
        assert fills.packing.kept(weight) is not None


@pytest.mark.parametrize(
    ("nbytes", "taken"),
    [
        (1000, 1000),
        ((11 << 20) // 10, (11 << 20) // 10),
        ((19 << 20) // 10, 2 << 20),
        (3 << 20, 3 << 20),
        (64 << 20, 64 << 20),
        ((64 << 20) + 4, 66 << 20),
        ((63 << 20) + 4, 64 << 20),
    ],
)
def test_what_is_not_filled_is_at_most_an_eighth(nbytes: int, taken: int) -> None:
    assert memory.footprint(nbytes) == taken
    found = memory.lasting(nbytes)
    assert found.nbytes >= nbytes
    assert nbytes < memory.HUGE_PAGE or found.data_ptr() % memory.HUGE_PAGE == 0
    found.view(torch.uint8)[[0, nbytes - 1]] = 1


@needs_native
def test_a_cast_follows_its_weight_and_that_of_a_sealed_one_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, sealed = torch.ones(70, 60), torch.ones(70, 60)
    kept.store.seal(sealed)
    looked_at: list[Tensor] = []
    fingerprint = kept.fingerprint
    monkeypatch.setattr(kept, "fingerprint", lambda tensor, uses: looked_at.append(tensor) or fingerprint(tensor, uses))
    for given in (weight, sealed):
        first = kept.cast(given, torch.bfloat16, 1000)
        assert kept.cast(given, torch.bfloat16, 1000) is first
        assert torch.equal(first, given.bfloat16())
        assert kept.store.is_sealed(first.data_ptr())
    assert all(tensor is weight for tensor in looked_at)
    weight.data.mul_(3)
    assert torch.equal(kept.cast(weight, torch.bfloat16, 1000), weight.bfloat16())


def test_the_machine_has_memory() -> None:
    assert machine_bytes() > 1 << 20


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1000", 1000),
        ("512M", 512 << 20),
        ("2G", 2 << 30),
        ("2 GiB", 2 << 30),
        ("64kb", 64 << 10),
        ("7B", 7),
        ("", 5),
    ],
)
def test_the_environment_tells_bytes(text: str, nbytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.KEPT_VARIABLE, text)
    assert byte_setting(kept.KEPT_VARIABLE, 5) == nbytes


@pytest.mark.parametrize("text", ["-1", "much", "1.5G", "2X", "2GG", "M", "١"])
def test_other_words_of_the_environment_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.KEPT_VARIABLE, text)
    with pytest.raises(
        ValueError, match=f"AIGC_FAST_KEPT_BYTES='{text}': expected a number of bytes, as .* 512M or 2G"
    ):
        byte_setting(kept.KEPT_VARIABLE, 5)
