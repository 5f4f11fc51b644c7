"""The CUDA kernels of recurrent networks, as the CPU emulates them: blocks that wait for each other at every step."""

from __future__ import annotations

import pytest
import torch
from cases import assert_parity
from places import EMULATOR, Place
from recurrent_cases import CELL_GATES, NETWORKS, Recurrent
from watching import launches

import aigc_fast.functional as AF
from aigc_fast.ops.recurrent import cuda
from aigc_fast.runtime import native
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32

pytestmark = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None, reason="AIGC_FAST_CUDA_HOST=1 is not set"
)
IN_ORDERS = pytest.mark.parametrize("place", EMULATOR, ids=str)

CASES = [
    # Of the shapes that the CPU's kernels are tested on, those of both directions, which have all else in turn.
    *[case for case in NETWORKS if case.bidirectional and case.layers == 2 and case.hidden in (3, 17)],
    *[Recurrent(mode, 3, 113, steps=3, batch=batch) for mode in CELL_GATES for batch in (1, 5, 8)],
    *[Recurrent(mode, 2, 1, steps=1, batch=1) for mode in CELL_GATES],
    Recurrent("GRU", 3, 5, steps=4, batch=0),
]


def check(case: Recurrent, place: Place, dtype: torch.dtype = torch.float32) -> None:
    tensors = case.tensors(dtype)
    theirs, exact = (case.network(torch._VF)(*given) for given in (tensors, [tensor.double() for tensor in tensors]))
    with place.in_force(), launches("cuda:recurrent") as launched:
        found = case.network(AF)(*tensors)
    for each in zip(found, theirs, exact, strict=True):
        assert_parity(*each, str(case), floor=place.floor(dtype))
    assert len(launched) == (case.layers * (1 + case.bidirectional) if case.batch else 0)


@IN_ORDERS
@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated_values(case: Recurrent, place: Place) -> None:
    check(case, place)


@IN_ORDERS
@pytest.mark.parametrize("dtype", UP_TO_FLOAT32[1:])
@pytest.mark.parametrize("mode", CELL_GATES)
def test_emulated_values_in_16_bits(mode: str, dtype: torch.dtype, place: Place) -> None:
    check(Recurrent(mode, 5, 19, 2, True, steps=4, batch=3), place, dtype)


def test_emulated_orders_of_threads_give_the_same_bits() -> None:
    case = Recurrent("GRU", 5, 70, 2, True, steps=4, batch=3)
    tensors, found = case.tensors(), []
    for place in EMULATOR:
        with place.in_force():
            found.append(torch.cat([part.flatten() for part in case.network(AF)(*tensors)]))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", CELL_GATES)
@pytest.mark.parametrize("kept", ["nothing", "some columns"])
def test_emulated_weights_beyond_shared_memory_are_read_anew(
    kept: str, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers."""
    case = Recurrent(mode, 3, 300, steps=3, batch=2)
    tensors, found = case.tensors(dtype), []
    for most in (1 << 20, 0 if kept == "nothing" else 40 << 10):
        monkeypatch.setattr(cuda, "MOST_SHARED", most)
        with EMULATOR[2].in_force():
            found.append(case.network(AF)(*tensors))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
