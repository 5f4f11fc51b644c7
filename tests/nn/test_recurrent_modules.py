"""Recurrent modules against torch.nn's: PyTorch's samples, state_dicts, packed sequences, tools."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import assert_parity
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from watching import launches

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
LAYERS, CELLS = ("RNN", "LSTM", "GRU"), ("RNNCell", "LSTMCell", "GRUCell")


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a module's result, in their order."""
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [tensor for part in value for tensor in tensors_of(part)]


def with_dtype(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, PackedSequence):
        return value.to(dtype)
    return value.to(dtype) if isinstance(value, Tensor) else tuple(with_dtype(part, dtype) for part in value)


def as_leaves(value: Any) -> tuple[Any, list[Tensor]]:
    """The same with tensors that want gradients, and these."""
    if isinstance(value, PackedSequence):
        data = value.data.detach().clone().requires_grad_()
        return value._replace(data=data), [data]
    if isinstance(value, Tensor):
        leaf = value.detach().clone().requires_grad_(value.is_floating_point())
        return leaf, [leaf] if leaf.requires_grad else []
    parts = [as_leaves(part) for part in value]
    return tuple(part for part, _ in parts), [leaf for _, leaves in parts for leaf in leaves]


def values_and_gradients(module: nn.Module, args: tuple[Any, ...], weights: list[Tensor]) -> list[Tensor]:
    args, leaves = as_leaves(args)
    found = tensors_of(module(*args))
    if not weights:
        weights += [torch.randn_like(part) for part in found]
    pairs = zip(found, weights, strict=True)
    total = sum((part * weight.to(part.dtype)).sum() for part, weight in pairs)
    wanted = [*leaves, *module.parameters()]
    return [*found, *torch.autograd.grad(total, wanted, allow_unused=True)]


def assert_same(theirs: nn.Module, ours: nn.Module, args: tuple[Any, ...]) -> None:
    """Values and gradients, within twice PyTorch's error."""
    exact, weights = copy.deepcopy(theirs).double(), []
    expected = values_and_gradients(exact, with_dtype(args, torch.float64), weights)
    stock, found = (values_and_gradients(module, args, weights) for module in (theirs, ours))
    assert len(found) == len(stock) == len(expected)
    for each in zip(found, stock, expected, strict=True):
        assert (each[0] is None) == (each[1] is None)
    for parts in zip(found, stock, expected, strict=True):
        assert parts[0] is None or parts[0].shape == parts[1].shape
    joined = [torch.cat([part.reshape(-1) for part in parts if part is not None]) for parts in (found, stock, expected)]
    assert_parity(*joined)


def make(name: str, *args: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """PyTorch's module and ours, with the same weights."""
    theirs, ours = getattr(nn, name)(*args, **options), getattr(fast_nn, name)(*args, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyTorch warns of projections, which its fast kernel does not take, and of dropout in one layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def samples(name: str, training: bool) -> list[tuple[dict[str, Any], tuple[Any, ...]]]:
    """PyTorch's own samples: the constructor's arguments and the call's."""
    common = pytest.importorskip("torch.testing._internal.common_modules")
    info = next(info for info in common.module_db if info.module_cls is getattr(nn, name))
    inputs = info.module_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=training)
    found = []
    for sample in inputs:
        constructor, forward = sample.constructor_input, sample.forward_input
        assert not forward.kwargs
        found.append(((constructor.args, constructor.kwargs), forward.args))
    return found


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_samples_of_pytorch(name: str, training: bool, backend: str) -> None:
    found = samples(name, training)
    assert found
    for (args, options), inputs in found:
        theirs, ours = make(name, *args, **options)
        if getattr(theirs, "dropout", 0.0) and training:
            continue  # each has random numbers of its own
        assert_same(theirs.train(training), ours.train(training), tuple(inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_unbatched_input(name: str) -> None:
    theirs, ours = make(name, 5, 7, 2, bidirectional=True)
    assert_same(theirs, ours, (torch.randn(6, 5),))
    state = torch.randn(4, 7)
    assert_same(theirs, ours, (torch.randn(6, 5), (state, state * 2) if name == "LSTM" else state))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sorted_", [False, True])
def test_packed_sequences(name: str, sorted_: bool) -> None:
    theirs, ours = make(name, 5, 7, 2, bidirectional=True)
    lengths = [6, 5, 2, 2] if sorted_ else [2, 6, 1, 5]
    input = pack_padded_sequence(torch.randn(6, 4, 5), lengths, enforce_sorted=sorted_)
    state = torch.randn(4, 4, 7)
    assert_same(theirs, ours, (input,))
    assert_same(theirs, ours, (input, (state, state * 2) if name == "LSTM" else state))


@needs_native
@pytest.mark.parametrize("name", LAYERS)
def test_packed_sequences_take_one_call(name: str) -> None:
    ours = getattr(fast_nn, name)(5, 7, 2, bidirectional=True)
    with launches() as called, torch.no_grad():
        ours(pack_sequence([torch.randn(4, 5), torch.randn(2, 5)]))
    assert called.count("recurrent") == 1


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("shape", [(3, 5), (5,)], ids=["batch", "single"])
@pytest.mark.parametrize("bias", [False, True])
def test_cells(name: str, shape: tuple[int, ...], bias: bool, backend: str) -> None:
    theirs, ours = make(name, 5, 7, bias=bias)
    state = torch.randn(*shape[:-1], 7)
    assert_same(theirs, ours, (torch.randn(shape),))
    assert_same(theirs, ours, (torch.randn(shape), (state, state * 2) if name == "LSTMCell" else state))


@needs_native
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell"])
def test_steps_of_a_cell_take_one_call_each(name: str) -> None:
    theirs, ours = make(name, 130, 140)
    exact, input, state = copy.deepcopy(theirs).double(), torch.randn(3, 130), None
    stock, expected = None, None
    with torch.no_grad(), launches() as called:
        for _ in range(4):
            state, stock, expected = ours(input, state), theirs(input, stock), exact(input.double(), expected)
            for each in zip(*(tensors_of(states) for states in (state, stock, expected)), strict=True):
                assert_parity(*each)
        single = ours(input[0], tuple(part[0] for part in state) if name == "LSTMCell" else state[0])
    assert called.count("recurrent") == 5
    batch = ours(input, state)
    for one, three in zip(tensors_of(single), tensors_of(batch), strict=True):
        torch.testing.assert_close(one, three[0])


@needs_native
def test_steps_that_are_pytorchs() -> None:
    cells = fast_nn.GRUCell(5, 7), fast_nn.RNNCell(5, 300), fast_nn.LSTMCell(5, 400)
    with torch.no_grad(), launches() as called:
        for cell in cells:
            cell(torch.randn(2, 5))
    assert "recurrent" not in called


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_state_dict_both_ways(name: str) -> None:
    theirs, ours = getattr(nn, name)(5, 7), getattr(fast_nn, name)(5, 7)
    assert list(theirs.state_dict()) == list(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, getattr(nn, name))


@pytest.mark.parametrize("name", LAYERS)
def test_parametrized_weights(name: str) -> None:
    """What the module keeps in `_flat_weights` is from before."""
    theirs, ours = make(name, 5, 7)
    with torch.no_grad():
        theirs.weight_hh_l0.mul_(2)

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * 2

    nn.utils.parametrize.register_parametrization(ours, "weight_hh_l0", Twice())
    input = torch.randn(4, 2, 5)
    torch.testing.assert_close(ours(input)[0], theirs(input)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_other_dtypes_and_autocast_are_pytorchs(name: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        theirs, ours = (module.to(dtype) for module in make(name, 5, 7))
        input = torch.randn(4, 2, 5, dtype=dtype)
        torch.testing.assert_close(ours(input), theirs(input))
    theirs, ours = make(name, 5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ours(torch.ones(4, 2, 5)), theirs(torch.ones(4, 2, 5)))


def _error(module: nn.Module, args: tuple[Any, ...]) -> str:
    with pytest.raises((RuntimeError, ValueError)) as error:
        module(*args)
    return f"{error.type.__name__}: {error.value}"


@pytest.mark.parametrize("name", LAYERS)
def test_bad_input_raises_as_in_pytorch(name: str) -> None:
    theirs, ours = make(name, 5, 7)
    faults = [
        (torch.randn(5),),
        (torch.randn(4, 2, 6),),
        (torch.randn(4, 2, 5).double(),),
        (torch.randn(0, 2, 5),),
    ]
    for args in faults:
        assert _error(ours, args).split(",")[0] == _error(theirs, args).split(",")[0]
    for state in (torch.zeros(1, 3, 7), torch.zeros(2, 2, 7), torch.zeros(1, 2, 6), torch.zeros(2, 7)):
        _error(ours, (torch.randn(4, 2, 5), (state, state) if name == "LSTM" else state))


@pytest.mark.parametrize("name", CELLS)
def test_bad_input_of_cells_raises_as_in_pytorch(name: str) -> None:
    theirs, ours = make(name, 5, 7)
    good, pair = torch.zeros(2, 7), name == "LSTMCell"
    faults = [(torch.randn(1, 2, 5),), (torch.randn(2, 6),)]
    faults += [
        (torch.randn(2, 5), (state, good) if pair else state) for state in (torch.zeros(3, 7), torch.zeros(2, 6))
    ]
    for args in faults:
        assert _error(ours, args) == _error(theirs, args)


def test_no_batch() -> None:
    theirs, ours = make("GRU", 5, 7)
    found = ours(torch.randn(4, 0, 5))
    assert [part.shape for part in found] == [part.shape for part in theirs(torch.randn(4, 0, 5))]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_compile_and_export(name: str) -> None:
    module = getattr(fast_nn, name)(5, 7)
    input = torch.randn(*((4, 2) if name in LAYERS else (2,)), 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), module(input))
    program = torch.export.export(module, (input,)).module()
    torch.testing.assert_close(program(input), module(input))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_pickle_copy_and_trace(name: str) -> None:
    module = getattr(fast_nn, name)(5, 7)
    input = torch.randn(*((4, 2) if name in LAYERS else (2,)), 5)
    torch.testing.assert_close(copy.deepcopy(module)(input), module(input))
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(module, input, check_trace=False)(input), module(input))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_exports_to_onnx_are_pytorchs(name: str, dynamo: bool, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    file, module = str(tmp_path / "layers.onnx"), getattr(fast_nn, name)(5, 7, 2, bidirectional=True).eval()
    input = torch.randn(4, 3, 5)
    torch.onnx.export(module, (input,), file, dynamo=dynamo, verbose=False)
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    output, *_ = session.run(None, {session.get_inputs()[0].name: input.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), module(input)[0].detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_torch_fx_keeps_the_module(name: str) -> None:
    module = nn.Sequential(getattr(fast_nn, name)(5, 7))
    graph = torch.fx.symbolic_trace(module)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]


@needs_native
def test_a_forced_backend_runs_or_raises() -> None:
    module = fast_nn.GRU(5, 7).double()
    with aigc_fast.backend("cpu"), pytest.raises(RuntimeError, match="float64"):
        module(torch.randn(4, 2, 5).double())
