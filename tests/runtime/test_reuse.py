"""Memory of results that serves again: only once nobody has it."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from torch import Tensor

import aigc_fast.functional as AF
from aigc_fast.runtime import memory
from aigc_fast.runtime.memory import LEAST_REUSED, MOST_REUSED, Reuse

NUMBERS = LEAST_REUSED // torch.float32.itemsize


@pytest.fixture(autouse=True)
def reuse(monkeypatch: pytest.MonkeyPatch) -> Reuse:
    """A store of the test's own."""
    store = Reuse(64 << 20)
    if not store.cap:
        pytest.skip("this torch does not tell who has a storage")
    monkeypatch.setattr(memory, "reuse", store)
    return store


def result(count: int = NUMBERS) -> Tensor:
    return memory.placed(torch.empty(count))


def address_of_a_freed_result() -> int:
    return result().data_ptr()


def test_what_nobody_has_serves_again_with_a_shape_of_its_own() -> None:
    before = address_of_a_freed_result()
    found = memory.placed(torch.empty_strided((2, NUMBERS // 2), (1, 2)))
    assert found.data_ptr() == before
    assert found.shape == (2, NUMBERS // 2)
    assert found.stride() == (1, 2)
    assert found.untyped_storage().nbytes() == found.nbytes
    assert not found._is_view()


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[3:5],
    "detach": lambda t: t.detach(),
    "data": lambda t: t.data,
    "another dtype": lambda t: t.view(torch.int16),
    "NumPy": lambda t: t.numpy(),
    "a view in NumPy": lambda t: t.numpy()[7:],
    "memoryview": lambda t: memoryview(t.numpy()),
    "DLPack": lambda t: torch.utils.dlpack.to_dlpack(t),
    "NumPy by DLPack": lambda t: np.from_dlpack(t),
    "the storage": lambda t: t.untyped_storage(),
    "a weak reference to the storage": lambda t: weakref.ref(t.untyped_storage()),
    "a tensor set to it": lambda t: torch.empty(0).set_(t.untyped_storage()),
    "the graph": lambda t: torch.ones(NUMBERS, requires_grad=True) * t,
    "a parameter": lambda t: torch.nn.Parameter(t),
    "a closure": lambda t: lambda: t,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_somebody_has_does_not_serve_again(holder: str) -> None:
    first = result()
    before, held = first.data_ptr(), HOLDERS[holder](first)
    del first
    assert result().data_ptr() != before
    del held
    if not holder.startswith("a weak"):
        assert before in {t.data_ptr() for t in [result() for _ in range(3)]}


@pytest.mark.parametrize(
    "change",
    [
        lambda storage: storage.resize_(storage.nbytes() // 2),
        lambda storage: storage.resize_(0),
        lambda storage: storage.share_memory_(),
    ],
    ids=["made smaller", "emptied", "shared between processes"],
)
def test_a_storage_that_was_changed_is_forgotten(change: Callable[[Any], Any], reuse: Reuse) -> None:
    change(result().untyped_storage())
    assert result().untyped_storage().nbytes() == LEAST_REUSED
    assert not result().is_shared()


@pytest.mark.parametrize(
    ("count", "again"), [(NUMBERS - 1, False), (MOST_REUSED // 4, True), (MOST_REUSED // 4 + 1, False)]
)
def test_sizes_that_serve_again(count: int, again: bool, reuse: Reuse) -> None:
    result(count)
    assert (reuse.take(count * 4) is not None) == again


def test_no_more_is_known_than_the_cap_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Reuse(3 * LEAST_REUSED)
    monkeypatch.setattr(memory, "reuse", store)
    storages = [weakref.ref(result(NUMBERS + i).untyped_storage(), lambda _: None) for i in range(5)]
    assert [storage() is not None for storage in storages] == [False, False, False, True, True]
    assert Reuse(0).take(LEAST_REUSED) is None


def test_what_is_new_is_filled_where_pytorch_fills_it() -> None:
    result().fill_(1)
    torch.use_deterministic_algorithms(True)
    try:
        assert result().isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_call_inside_another_goes_on_without(reuse: Reuse) -> None:
    before = address_of_a_freed_result()
    with reuse._busy:
        assert result().data_ptr() != before
    assert result().data_ptr() == before


def test_results_of_many_threads_never_share_memory() -> None:
    wrong, start = [], threading.Barrier(4)

    def work(seed: int) -> None:
        draw, held = random.Random(seed), {}
        start.wait()
        for turn in range(400):
            key = draw.randrange(6)
            if key in held and not (held[key][0] == held[key][1]).all():
                wrong.append((seed, turn))
            value = seed * 1000 + turn
            held[key] = result(NUMBERS + draw.randrange(2)).fill_(value)[::4096], value

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("training", [False, True])
def test_results_of_ops_that_are_kept_stay(training: bool) -> None:
    input = torch.randn(2, 16, 24000, requires_grad=training)
    weight = torch.randn(16, 16, 5, requires_grad=training)
    kept = []
    for step in range(6):
        output = AF.conv1d(input * (step + 1), weight, None, padding=2)
        gradients = torch.autograd.grad(output.sum(), (input, weight)) if training else ()
        kept.append([output.detach(), *gradients] if step % 2 else None)
    for step in (1, 3, 5):
        output = TF.conv1d(input * (step + 1), weight, None, padding=2)
        gradients = torch.autograd.grad(output.sum(), (input, weight)) if training else ()
        for found, expected in zip(kept[step], [output, *gradients], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
