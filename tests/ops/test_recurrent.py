"""Recurrent networks against float64 and PyTorch: every shape of a network, gradients, levels, threads, bad input."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from parity import assert_parity, relative_error
from recurrent_cases import (
    CELL_GATES,
    HALF_NETWORKS,
    NETWORK_SIZES,
    NETWORKS,
    PROJECTED_NETWORKS,
    SOME_NETWORKS,
    Recurrent,
)
from torch import Tensor
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.ops.recurrent import cpu, reference
from aigc_fast.ops.recurrent.operators import RECURRENT
from aigc_fast.ops.recurrent.sizes import CODES
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
EVERY_LEVEL = [
    *SOME_NETWORKS,
    *[case for case in PROJECTED_NETWORKS if case.layers == 2 and case.bidirectional],
    *NETWORK_SIZES,
]


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch warns of projections, which its fast kernel does not take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_forward(case: Recurrent, dtype: torch.dtype = torch.float32) -> None:
    tensors = case.tensors(dtype)
    with quiet():
        theirs = case.network(torch._VF)(*tensors)
        exact = case.network(torch._VF)(*[tensor.double() for tensor in tensors])
        found = case.network(AF)(*tensors)
    assert len(found) == len(theirs)
    for each in zip(found, theirs, exact, strict=True):
        assert_parity(*each, str(case))


def every_gradient(case: Recurrent, home: Any, tensors: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    with quiet():
        found = case.network(home)(*inputs)
    return list(torch.autograd.grad(found, inputs, [grad.to(inputs[0].dtype) for grad in upstream]))


def assert_gradients(case: Recurrent, dtype: torch.dtype = torch.float32) -> None:
    # A sum within a rounding of zero lets relu's gradient through or not: then other numbers must do.
    for draws_left in (2, 1, 0) if case.mode == "RNN_RELU" else (0,):
        try:
            assert_gradients_of_a_draw(case, dtype)
            return
        except AssertionError:
            if not draws_left:
                raise


def assert_gradients_of_a_draw(case: Recurrent, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    with torch.no_grad(), quiet():
        upstream = [torch.randn_like(part) for part in case.network(torch._VF)(*tensors)]
    found, theirs, exact = (
        every_gradient(case, home, [tensor.to(dtype) for tensor in tensors], upstream)
        for home, dtype in ((AF, dtype), (torch._VF, dtype), (torch._VF, torch.float64))
    )
    # Of a single number most may cancel out: the error of all together.
    assert_parity(*(torch.cat([part.reshape(-1) for part in parts]) for parts in (found, theirs, exact)), str(case))
    assert [part.shape for part in found] == [part.shape for part in exact]


@needs_native
@pytest.mark.parametrize("case", [*NETWORKS, *PROJECTED_NETWORKS, *NETWORK_SIZES], ids=str)
def test_forward(case: Recurrent) -> None:
    with launches() as called:
        assert_forward(case)
    assert "recurrent" in called


@needs_native
@pytest.mark.parametrize("case", [*NETWORKS, *PROJECTED_NETWORKS, *NETWORK_SIZES], ids=str)
def test_gradients(case: Recurrent) -> None:
    with aigc_fast.backend("cpu"), launches() as called:
        assert_gradients(case)
    assert "recurrent_backward" in called


@pytest.mark.parametrize("case", SOME_NETWORKS, ids=str)
def test_forward_and_gradients_of_every_backend(case: Recurrent, backend: str) -> None:
    assert_forward(case)
    assert_gradients(case)


@needs_native
@pytest.mark.parametrize("case", EVERY_LEVEL, ids=str)
def test_forward_on_every_level(case: Recurrent, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_forward(case)


@needs_native
@pytest.mark.parametrize("case", EVERY_LEVEL, ids=str)
def test_gradients_on_every_level(case: Recurrent, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_gradients(case)


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", HALF_NETWORKS, ids=str)
def test_forward_in_16_bits_on_every_level(case: Recurrent, dtype: torch.dtype, isa: str) -> None:
    with aigc_fast.backend("cpu"):
        assert_forward(case, dtype)


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", HALF_NETWORKS[:-1], ids=str)
def test_gradients_in_16_bits(case: Recurrent, dtype: torch.dtype) -> None:
    with aigc_fast.backend("cpu"):
        assert_gradients(case, dtype)


@needs_native
@pytest.mark.parametrize("mode", CELL_GATES)
def test_one_sequence_in_bfloat16_is_ours_where_the_level_multiplies_it(mode: str, isa: str) -> None:
    case = Recurrent(mode, 6, 18, 2, True, batch=1)
    for _ in range(3):
        with launches() as called:
            assert_forward(case, torch.bfloat16)
        assert called.count("recurrent") == native.kernels().recurrent_takes_pairs()
    with launches() as called:
        assert_forward(Recurrent(mode, 6, 18, 2, True, batch=2), torch.bfloat16)
    assert "recurrent" not in called


@needs_native
def test_views_in_bfloat16() -> None:
    """Rows that begin at odd places of the memory."""
    case = Recurrent("GRU", 6, 18, steps=5, batch=1)
    input, hx, *params = case.tensors(torch.bfloat16)
    wide = torch.zeros(5, 1, 9, dtype=torch.bfloat16)
    wide[..., 1:7] = input
    state = torch.cat([torch.zeros(1, dtype=torch.bfloat16), hx.flatten()])[1:].view(hx.shape)
    with aigc_fast.backend("cpu"):
        found = case.network(AF)(wide[..., 1:7], state, *params)
        expected = case.network(AF)(input, hx, *params)
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("case", [*SOME_NETWORKS, *PROJECTED_NETWORKS[:2]], ids=str)
def test_reference(case: Recurrent) -> None:
    tensors = case.tensors(torch.float64)
    with quiet():
        exact = case.network(torch._VF)(*tensors)
    states, counts = 2 if case.mode == "LSTM" else 1, None if case.counts is None else torch.tensor(case.counts)
    numbers = CODES[case.mode], case.layers, case.bidirectional, case.bias, case.batch_first, 0.0
    inputs = tensors[0], counts, tensors[1 : 1 + states], tensors[1 + states :]
    found = reference.recurrent(*inputs, *numbers, False)
    for ours, theirs in zip(found, exact, strict=False):
        torch.testing.assert_close(ours, theirs)


@needs_native
@pytest.mark.parametrize("mode", CELL_GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("projected", [0, 113])
@pytest.mark.parametrize("batch", [5, 26])  # few rows, whose units are divided, and enough to divide rows
def test_any_number_of_threads_gives_the_same_numbers(
    mode: str, bidirectional: bool, projected: int, batch: int
) -> None:
    if projected and mode != "LSTM":
        pytest.skip("an LSTM's alone are projected")
    deep, single = (
        Recurrent(mode, 40, 260, layers, bidirectional, projected=projected, steps=5, batch=batch) for layers in (2, 1)
    )
    tensors, upstream, before, runs = deep.tensors(), [], torch.get_num_threads(), []
    leaves = [tensor.requires_grad_() for tensor in single.tensors()]
    try:
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            found = single.network(AF)(*leaves)
            upstream = upstream or [torch.randn_like(part) for part in found]
            # Products over all rows, which make the other gradients, are PyTorch's, whose order of sums is its own.
            to_states = torch.autograd.grad(found, leaves[1 : len(found)], upstream)
            runs.append([*deep.network(AF)(*tensors), *to_states])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert torch.equal(one, other)


IN_TURN = [
    *[Recurrent(mode, 5, 20, layers, steps=37, batch=2) for mode in CELL_GATES for layers in (2, 3, 5)],
    Recurrent("LSTM", 40, 260, 4, batch_first=True, steps=33, batch=1),
    Recurrent("LSTM", 5, 20, 3, projected=7, steps=20),
    Recurrent("GRU", 5, 20, 3, steps=40, batch=5, counts=(5,) * 17 + (3,) * 16 + (1,) * 7),
    Recurrent("GRU", 5, 20, 2, steps=3, batch=100),
]


@needs_native
@pytest.mark.parametrize("case", IN_TURN, ids=str)
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_layers_in_turn_give_the_numbers_of_one_after_the_other(
    case: Recurrent, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, before = case.tensors(), torch.get_num_threads()
    monkeypatch.setattr(cpu, "LEAST_STEP_WORK", 1 << 10)
    monkeypatch.setattr(cpu, "WAIT_WORK", 1 << 40)
    runs = []
    try:
        torch.set_num_threads(threads)
        for share in (0.0, float("inf")):
            monkeypatch.setattr(cpu, "WAVE_SHARE", share)
            leaves = [tensor.clone().requires_grad_() for tensor in tensors]
            trained = case.network(AF)(*leaves)
            gradients = torch.autograd.grad(trained[0].sum(), leaves[0])
            runs.append([*case.network(AF)(*tensors), *trained, *gradients])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@needs_native
def test_weights_are_kept_packed_until_they_change() -> None:
    case = Recurrent("LSTM", 40, 48, steps=3)
    tensors = case.tensors()
    run, packs = case.network(AF), []
    for _ in range(4):
        with launches() as called:
            run(*tensors)
        packs.append(called.count("recurrent_pack"))
    assert packs == [0, 2, 0, 0]
    tensors[3].data.mul_(0.5)
    for _ in range(3):
        assert_parity(
            run(*tensors)[0],
            case.network(torch._VF)(*tensors)[0],
            case.network(torch._VF)(*[tensor.double() for tensor in tensors])[0],
        )


@pytest.mark.parametrize("mode", CELL_GATES)
def test_second_gradients(mode: str) -> None:
    case = Recurrent(mode, 3, 4, 2, True, steps=3, batch=2)
    tensors = [tensor.requires_grad_() for tensor in case.tensors(torch.float64)]
    numbers = CODES[mode], 2, True, True, False, 0.0, True
    states = 2 if mode == "LSTM" else 1

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return RECURRENT(tensors[0], None, list(tensors[1 : 1 + states]), list(tensors[1 + states :]), *numbers)[
            : 1 + states
        ]

    assert torch.autograd.gradgradcheck(run, tuple(tensors), nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize("mode", CELL_GATES)
def test_second_gradients_of_an_input_that_wants_none(mode: str) -> None:
    case = Recurrent(mode, 3, 4, 2, steps=3, batch=2)
    given = case.tensors(torch.float64)

    def second(dtype: torch.dtype, home: Any) -> list[Tensor]:
        input, *leaves = (tensor.to(dtype) for tensor in given)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        output = case.network(home)(input, *leaves)[0]
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(part.square().sum() for part in first), leaves))

    for ours, exact in zip(second(torch.float32, AF), second(torch.float64, torch._VF), strict=True):
        assert relative_error(ours, exact) < 1e-5


@needs_native
@pytest.mark.parametrize("mode", CELL_GATES)
def test_autocast_of_a_forced_backend(mode: str) -> None:
    """All arguments in autocast's dtype, whatever they were in."""
    case = Recurrent(mode, 6, 8, 2)
    input, *rest = case.tensors()
    with aigc_fast.backend("cpu"), torch.autocast("cpu", dtype=torch.bfloat16):
        found = case.network(AF)(input.bfloat16(), *rest)
    exact = case.network(torch._VF)(*[tensor.double() for tensor in (input, *rest)])
    assert found[0].dtype == torch.bfloat16
    assert relative_error(found[0], exact[0]) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mode", CELL_GATES)
def test_autocast_in_a_graph_is_pytorchs(mode: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    case = Recurrent(mode, 6, 8, 2)
    tensors = [tensor.to(dtype) for tensor in case.tensors()]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = case.network(torch._VF)(*tensors)
        found = torch.compile(case.network(AF), fullgraph=True, backend="aot_eager")(*tensors)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", CELL_GATES)
def test_gradients_under_autocast_in_a_graph(mode: str) -> None:
    torch._dynamo.reset()
    case = Recurrent(mode, 6, 8, 2)

    def gradients(network: Any, dtype: torch.dtype) -> list[Tensor]:
        input, *leaves = (tensor.to(dtype) for tensor in given)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.float32):
            output = network(input, *leaves)[0]
        return list(torch.autograd.grad(output.square().sum(), leaves))

    given = case.tensors()
    found = gradients(torch.compile(case.network(AF), fullgraph=True, backend="aot_eager"), torch.float32)
    for ours, exact in zip(found, gradients(case.network(torch._VF), torch.float64), strict=True):
        assert relative_error(ours, exact) < 5e-2


@pytest.mark.parametrize("mode", CELL_GATES)
def test_nan_and_infinity(mode: str) -> None:
    """As in PyTorch they last from their step, in their sequence, to its end."""
    case = Recurrent(mode, 3, 5, steps=4, batch=3)
    tensors = case.tensors()
    tensors[0][1, 0] = torch.nan
    tensors[1][0, 2] = torch.nan
    found, theirs = (case.network(home)(*tensors) for home in (AF, torch._VF))
    for ours, expected in zip(found, theirs, strict=True):
        assert torch.equal(ours.isnan(), expected.isnan())


BAD: dict[str, tuple[Callable[[list[Tensor]], None], str]] = {
    "no steps": (lambda t: t.__setitem__(0, t[0][:0]), "Expected sequence length to be larger than 0"),
    "no batch": (lambda t: t.__setitem__(0, t[0][0]), "input must have 3 dimensions, got 2"),
    "hidden size": (lambda t: t.__setitem__(1, t[1][..., :-1]), "hx|params: weight_ih_l0 has shape|params has"),
    "no hidden size": (lambda t: t.__setitem__(1, t[1][..., :0]), "hx has 0 numbers"),
    "batch of the states": (
        lambda t: t.__setitem__(1, t[1][:, :-1]),
        r"hx has shape \(2, 2, 5\)",
    ),
    "layers of the states": (lambda t: t.__setitem__(1, t[1][:-1]), r"hx has shape \(1, 3, 5\)"),
    "dimensions of the states": (lambda t: t.__setitem__(1, t[1][0]), r"hx has shape \(3, 5\)"),
    "input size": (lambda t: t.__setitem__(0, t[0][..., :-1]), "params: weight_ih_l0 has shape"),
    "dtype": (lambda t: t.__setitem__(0, t[0].double()), "hx has dtype torch.float32"),
    "integers": (lambda t: t.__setitem__(0, t[0].long()), "input is torch.int64"),
    "device": (lambda t: t.__setitem__(0, t[0].to("meta")), "hx is on cpu"),
    "weight": (lambda t: t.__setitem__(-4, t[-4][:-1]), "params: weight_ih_l1 has shape"),
    "parameters": (lambda t: t.pop(), "params has 7 tensors: expected 8"),
    "no tensor": (lambda t: t.__setitem__(-1, None), "params has NoneType"),
}


@pytest.mark.parametrize("forced", ["auto", "reference"])
@pytest.mark.parametrize("mode", CELL_GATES)
@pytest.mark.parametrize("fault", BAD)
def test_what_does_not_fit(fault: str, mode: str, forced: str) -> None:
    case = Recurrent(mode, 3, 5, 2)
    tensors, (spoil, message) = case.tensors(), BAD[fault]
    spoil(tensors)
    with aigc_fast.backend(forced), pytest.raises(RuntimeError, match=message):
        case.network(AF)(*tensors)


@needs_native
@pytest.mark.parametrize("counts", [(4, 4, 0), (3, 4, 1), (5, 2, 1), (4, 2, 1)])
def test_wrong_batch_sizes(counts: tuple[int, ...]) -> None:
    case = Recurrent("GRU", 3, 5, batch=4, counts=(4, 3, 1))
    input, *rest = case.tensors()
    with aigc_fast.backend("cpu"), pytest.raises(RuntimeError, match="batch_sizes is"):
        Recurrent("GRU", 3, 5, batch=4, counts=counts).network(AF)(input, *rest)


def test_neither_form_of_a_call() -> None:
    with pytest.raises(TypeError, match="has_biases"):
        AF.lstm(torch.zeros(2, 2, 3))


@pytest.mark.parametrize("dropout", [2.0, -0.1])
def test_a_dropout_that_is_no_probability(dropout: float) -> None:
    case = Recurrent("GRU", 3, 5, layers=2)
    input, hx, *params = case.tensors()
    with pytest.raises(RuntimeError, match=f"dropout={dropout}: expected a probability"):
        AF.gru(input, hx, params, True, 2, dropout, True, False, False)


def test_keyword_arguments() -> None:
    case = Recurrent("GRU", 3, 5)
    input, hx, *params = case.tensors()
    named = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "train": False, "bidirectional": False}
    found = AF.gru(input, hx=hx, params=params, batch_first=False, **named)
    torch.testing.assert_close(found, case.network(AF)(input, hx, *params))


def test_relative_error_of_a_long_sequence() -> None:
    case = Recurrent("LSTM", 8, 32, steps=700, batch=2)
    tensors = case.tensors()
    found, exact = case.network(AF)(*tensors), case.network(torch._VF)(*[tensor.double() for tensor in tensors])
    assert relative_error(found[0], exact[0]) < 2e-5
