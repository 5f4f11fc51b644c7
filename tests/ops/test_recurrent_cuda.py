"""The CUDA kernels of recurrent networks, as the CPU emulates them: blocks that wait for each other at every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import assert_parity, relative_error
from places import EMULATOR, Place
from recurrent_cases import CELL_GATES, NETWORKS, Recurrent
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from watching import launches

import aigc_fast
import aigc_fast.functional as AF
from aigc_fast.nn import LayerNormLSTM
from aigc_fast.ops.recurrent import choice, cuda
from aigc_fast.ops.recurrent.sizes import LAYER_NORM_LSTM, LSTM, Options
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.backends import BackendError
from aigc_fast.runtime.dtypes import UP_TO_FLOAT32

needs_emulation = pytest.mark.skipif(
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


def draw(case: Recurrent, dtype: torch.dtype, gradients: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors of a call, and the gradients to what it gives, where they are wanted."""
    tensors = case.tensors(dtype)
    found = case.network(torch._VF)(*tensors)
    return tensors, [torch.randn_like(part) for part in found] if gradients else []


def results(case: Recurrent, home: Any, tensors: list[Tensor], upstream: list[Tensor]) -> list[Tensor]:
    """What a network gives, and all its gradients in one: of a single number most may cancel out."""
    leaves = [tensor.detach().clone().requires_grad_(bool(upstream)) for tensor in tensors]
    found = case.network(home)(*leaves)
    if not upstream:
        return list(found)
    gradients = torch.autograd.grad(found, leaves, [grad.to(tensors[0].dtype) for grad in upstream])
    return [*found, torch.cat([part.flatten() for part in gradients])]


def check(case: Recurrent, place: Place, dtype: torch.dtype = torch.float32, gradients: bool = False) -> None:
    tensors, upstream = draw(case, dtype, gradients)
    theirs = results(case, torch._VF, tensors, upstream)
    exact = results(case, torch._VF, [tensor.double() for tensor in tensors], upstream)
    kernel = "cuda:recurrent_backward" if gradients else "cuda:recurrent"
    with place.in_force(), launches(kernel) as launched:
        found = results(case, AF, tensors, upstream)
    for each in zip(found, theirs, exact, strict=True):
        assert_parity(*each, str(case), floor=place.floor(dtype))
    assert len(launched) == (case.layers * (1 + case.bidirectional) if case.batch else 0)


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_emulated_values_and_gradients(case: Recurrent, gradients: bool, place: Place) -> None:
    check(case, place, gradients=gradients)


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
@pytest.mark.parametrize("dtype", UP_TO_FLOAT32[1:])
@pytest.mark.parametrize("mode", ["RNN_TANH", "LSTM", "GRU"])
def test_emulated_values_and_gradients_in_16_bits(mode: str, dtype: torch.dtype, gradients: bool, place: Place) -> None:
    check(Recurrent(mode, 5, 19, 2, True, steps=4, batch=3), place, dtype, gradients)


@needs_emulation
@pytest.mark.parametrize("gradients", [False, True], ids=["values", "gradients"])
def test_emulated_states_of_more_numbers_than_are_staged_at_once(gradients: bool) -> None:
    check(Recurrent("RNN_TANH", 2, 2060, steps=2, batch=8), EMULATOR[2], gradients=gradients)


@needs_emulation
@pytest.mark.parametrize("mode", CELL_GATES)
def test_emulated_orders_of_threads_give_the_same_bits(mode: str) -> None:
    case, found = Recurrent(mode, 5, 70, 2, True, steps=4, batch=3), []
    tensors, upstream = draw(case, torch.float32, True)
    for place in EMULATOR:
        with place.in_force():
            found.append(torch.cat([part.flatten() for part in results(case, AF, tensors, upstream)]))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@needs_emulation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", CELL_GATES)
@pytest.mark.parametrize("kept", ["nothing", "some columns"])
def test_emulated_weights_beyond_shared_memory_are_read_anew(
    kept: str, mode: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same numbers."""
    case, found = Recurrent(mode, 3, 300, steps=3, batch=2), []
    tensors, upstream = draw(case, dtype, True)
    for most in (1 << 20, 0 if kept == "nothing" else 60 << 10):
        monkeypatch.setattr(cuda, "MOST_SHARED", most)
        with EMULATOR[2].in_force():
            found.append(results(case, AF, tensors, upstream))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@needs_emulation
@pytest.mark.parametrize("mode", CELL_GATES)
def test_emulated_tensors_that_lie_otherwise(mode: str) -> None:
    """Each begins in the middle of an access, and has its last dimension apart."""
    case = Recurrent(mode, 5, 8, 2, True, batch_first=True, steps=4, batch=3)
    tensors, upstream = draw(case, torch.float32, True)
    apart = [torch.cat([torch.zeros(1), tensor.mT.flatten() if tensor.dim() > 1 else tensor]) for tensor in tensors]
    views = [
        memory[1:].view(tensor.mT.shape).mT if tensor.dim() > 1 else memory[1:]
        for memory, tensor in zip(apart, tensors, strict=True)
    ]
    with aigc_fast.backend("cuda"):
        expected, found = (results(case, AF, given, upstream) for given in (tensors, views))
        first = case.network(AF)(*views)
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-6
    assert relative_error(first[0], expected[0]) < 1e-6


@needs_emulation
@pytest.mark.parametrize("mode", CELL_GATES)
def test_emulated_nan_and_infinity(mode: str) -> None:
    """As in PyTorch they last from their step, in their sequence, to its end."""
    case = Recurrent(mode, 3, 5, steps=4, batch=3)
    tensors = case.tensors()
    tensors[0][1, 0] = torch.nan
    tensors[1][0, 2] = torch.inf
    with aigc_fast.backend("cuda"):
        found = case.network(AF)(*tensors)
    for ours, theirs in zip(found, case.network(torch._VF)(*tensors), strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


@needs_emulation
@pytest.mark.parametrize("counts", [(4, 4, 0), (3, 4, 1), (5, 2, 1), (4, 2, 1)])
def test_emulated_wrong_batch_sizes(counts: tuple[int, ...]) -> None:
    input, *rest = Recurrent("GRU", 3, 5, batch=4, counts=(4, 3, 1)).tensors()
    with aigc_fast.backend("cuda"), pytest.raises(RuntimeError, match="batch_sizes is"):
        Recurrent("GRU", 3, 5, batch=4, counts=counts).network(AF)(input, *rest)


@needs_emulation
@pytest.mark.parametrize(
    ("case", "dtype", "reason"),
    [
        (Recurrent("GRU", 3, 5, batch=9), torch.float32, "9 sequences: the kernel takes up to 8"),
        (Recurrent("LSTM", 3, 5, projected=2), torch.float32, "hidden states are projected: the kernel has no"),
        (Recurrent("RNN_TANH", 3, 5), torch.float64, "torch.float64 is computed by the reference"),
    ],
)
def test_emulated_what_the_kernel_does_not_take(case: Recurrent, dtype: torch.dtype, reason: str) -> None:
    tensors = case.tensors(dtype)
    with aigc_fast.backend("cuda"), pytest.raises(BackendError, match=f"cuda: {reason}"):
        case.network(AF)(*tensors)


def normalized(layers: int, hidden: int, bidirectional: bool, dtype: torch.dtype = torch.float32) -> LayerNormLSTM:
    """Whose gains and biases are not the first ones."""
    module = LayerNormLSTM(5, hidden, layers, bidirectional=bidirectional, dtype=dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("weight"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def of_module(module: LayerNormLSTM, x: Tensor | PackedSequence, dtype: torch.dtype) -> list[Tensor]:
    """What a module gives in a dtype, and all its gradients in one."""
    module = module.to(dtype)
    is_packed = isinstance(x, PackedSequence)
    leaf = (x.data if is_packed else x).to(dtype).detach().requires_grad_()
    output, last = module(x._replace(data=leaf) if is_packed else leaf)
    found = [output.data if is_packed else output, *last]
    upstream = [torch.linspace(-1, 1, part.numel(), dtype=dtype).view(part.shape).cos() for part in found]
    gradients = torch.autograd.grad(found, [leaf, *module.parameters()], upstream)
    return [*found, torch.cat([part.flatten() for part in gradients])]


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("dtype", UP_TO_FLOAT32)
@pytest.mark.parametrize(
    ("layers", "hidden", "bidirectional", "batch"),
    [(1, 1, False, 1), (2, 17, True, (2, 7, 7, 1)), (1, 113, False, 5), (2, 40, True, 3)],
)
def test_emulated_normalized_lstms(
    layers: int, hidden: int, bidirectional: bool, batch: int | tuple[int, ...], dtype: torch.dtype, place: Place
) -> None:
    module = normalized(layers, hidden, bidirectional, dtype)
    if isinstance(batch, tuple):
        x = pack_sequence([torch.randn(length, 5).to(dtype) for length in batch], enforce_sorted=False)
    else:
        x = torch.randn(4, batch, 5).to(dtype)
    with aigc_fast.backend("reference"):
        theirs = of_module(module, x, dtype)
    with place.in_force(), launches("cuda:recurrent", "cuda:recurrent_backward") as launched:
        found = of_module(module, x, dtype)
    with aigc_fast.backend("reference"):
        exact = of_module(module, x, torch.float64)
    for each in zip(found, theirs, exact, strict=True):
        # Of sums that hardly differ normalization makes large ones, step after step.
        assert_parity(*each, floor=4 * place.floor(dtype))
    assert len(launched) == 2 * layers * (1 + bidirectional)


@needs_emulation
def test_emulated_orders_of_threads_give_the_same_bits_of_normalized_lstms() -> None:
    module, x, found = normalized(2, 70, True), torch.randn(4, 3, 5), []
    for place in EMULATOR:
        with place.in_force():
            found.append(torch.cat([part.flatten() for part in of_module(module, x, torch.float32)]))
    assert all(torch.equal(other, found[0]) for other in found[1:])


@needs_emulation
def test_emulated_kernels_are_explained() -> None:
    input, hx, *params = Recurrent("GRU", 3, 5).tensors()
    with aigc_fast.backend("cuda"):
        found = aigc_fast.explain("gru", input, hx, params, True, 1, 0.0, False, False, False)
    assert (found.chosen, found.detail) == ("cuda", cuda.detail())


@needs_emulation
def test_emulated_autocast_stays_outside_of_the_op() -> None:
    module, x = normalized(1, 9, False), torch.randn(3, 2, 5)
    options = Options(LAYER_NORM_LSTM, 1, False, True, False, module.eps)
    states = [torch.zeros(1, 2, 9)] * 2
    given = x, None, states, [parameter.detach() for parameter in module.parameters()], *options, False
    with aigc_fast.backend("cuda"):
        expected = torch.ops.aigc_fast.recurrent(*given)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = torch.ops.aigc_fast.recurrent(*given)
    assert torch.equal(found[0], expected[0])


def test_on_a_card_only_what_pytorch_has_no_kernel_of_is_ours_by_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda", lambda *args: None)
    input = torch.empty(4, 3, 5, device="meta")

    def reason(mode: int, batch: int) -> str | None:
        states = [torch.empty(1, batch, 9, device="meta")] * 2
        options = Options(mode, 1, False, True, False)
        return choice.leave(input[:, :batch], None, states, [], options, False)

    assert reason(LAYER_NORM_LSTM, 3) is None
    assert "PyTorch's own kernels compute there" in reason(LSTM, 3)
    input = torch.empty(4, 9, 5, device="meta")
    assert "PyTorch's own kernels compute there" in reason(LAYER_NORM_LSTM, 9)
