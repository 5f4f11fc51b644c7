"""The layer-normalized LSTM against its equations, step by step."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from parity import assert_parity, opcheck, relative_error
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from watching import launches

import aigc_fast
from aigc_fast.nn import LayerNormLSTM
from aigc_fast.ops.recurrent import cpu
from aigc_fast.ops.recurrent.operators import RECURRENT
from aigc_fast.ops.recurrent.sizes import LAYER_NORM_LSTM
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))


def normalized(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
    return (x - mean) / (variance + 1e-5).sqrt() * gain + bias


def by_equations(module: LayerNormLSTM, x: Tensor, hidden: Tensor, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of (T, B, I)."""
    tops, hidden, cells = [], list(hidden), list(cells)
    for now in x:
        for layer in range(module.num_layers):
            p = {name.removesuffix(f"_l{layer}"): value for name, value in module.named_parameters()}
            sums = normalized(now @ p["weight_ih"].T, p["gain_ih"], p["bias_ih"])
            sums = sums + normalized(hidden[layer] @ p["weight_hh"].T, p["gain_hh"], p["bias_hh"])
            i, f, g, o = sums.split(module.hidden_size, -1)
            cells[layer] = f.sigmoid() * cells[layer] + i.sigmoid() * g.tanh()
            now = hidden[layer] = o.sigmoid() * normalized(cells[layer], p["gain_c"], p["bias_c"]).tanh()
        tops.append(now)
    return torch.stack(tops), torch.stack(hidden), torch.stack(cells)


def module_of(**options: Any) -> LayerNormLSTM:
    torch.manual_seed(3)
    module = LayerNormLSTM(5, 7, 2, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def test_equations() -> None:
    module = module_of()
    x, state = torch.randn(6, 3, 5).double(), (torch.randn(2, 3, 7).double(), torch.randn(2, 3, 7).double())
    output, last = module(x, state)
    for found, expected in zip((output, *last), by_equations(module, x, *state), strict=True):
        torch.testing.assert_close(found, expected)
    first, _ = module_of(batch_first=True)(x.transpose(0, 1), state)
    torch.testing.assert_close(first, output.transpose(0, 1))
    single, (hidden, _) = module(x[:, 1], tuple(part[:, 1] for part in state))
    torch.testing.assert_close(single, output[:, 1])
    torch.testing.assert_close(hidden, last[0][:, 1])


def test_gradients() -> None:
    module = module_of()
    x = torch.randn(3, 2, 5).double().requires_grad_()
    names, parameters = zip(*module.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))[0]

    inputs = x, *(parameter.detach().requires_grad_() for parameter in parameters)
    assert torch.autograd.gradcheck(run, inputs)


def test_dropout_between_layers_alone() -> None:
    x = torch.randn(4, 2, 5).double()
    module = module_of(dropout=0.5)
    assert not torch.equal(module(x)[0], module(x)[0])
    module.eval()
    torch.testing.assert_close(module(x)[0], module_of()(x)[0])


def test_bad_input() -> None:
    module = LayerNormLSTM(5, 7)
    for x, state, message in (
        (torch.randn(4), None, "Expected input to be 2D or 3D, got 1D"),
        (torch.randn(3, 2, 4), None, r"input has shape \(3, 2, 4\)"),
        (torch.randn(0, 2, 5), None, "expected at least one step"),
        (torch.randn(3, 2, 5), (torch.zeros(1, 1, 7), torch.zeros(1, 2, 7)), r"hx has shape \(1, 1, 7\)"),
        (torch.randn(3, 2, 5), (torch.zeros(1, 2, 7), torch.zeros(1, 2, 6)), r"hx has shape \(1, 2, 6\)"),
        (pack_sequence([torch.randn(2, 4)]), None, r"input has shape \(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module(x, state)
    with pytest.raises(ValueError, match="hidden_size=0"):
        LayerNormLSTM(5, 0)
    with pytest.raises(ValueError, match="dropout=2"):
        LayerNormLSTM(5, 7, dropout=2)


def drawn(*sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> LayerNormLSTM:
    """A module whose gains and biases are not the first ones."""
    module = LayerNormLSTM(*sizes, dtype=dtype, **options)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("weight"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def packed(lengths: tuple[int, ...], inputs: int) -> PackedSequence:
    return pack_sequence([torch.randn(length, inputs) for length in lengths], enforce_sorted=False)


# Inputs, units, layers; batch (of a PackedSequence its lengths); other options.
CASES: list[tuple[int, int, int, Any, dict[str, Any]]] = [
    *[(5, hidden, 2, 3, {"bidirectional": both}) for hidden in (1, 3, 17, 113) for both in (False, True)],
    *[(5, 17, layers, (2, 7, 7, 1), {"bidirectional": both}) for layers in (1, 2) for both in (False, True)],
    (33, 40, 2, 30, {"batch_first": True}),
    (16, 64, 3, 1, {}),
    (7, 18, 1, 101, {"bidirectional": True}),
    (256, 256, 1, 2, {}),
    (3, 5, 2, 0, {}),
]
IDS = [f"{i}.{h}-l{n}-{b}-{'-'.join(o)}" for i, h, n, b, o in CASES]


def arguments(module: LayerNormLSTM, batch: Any) -> tuple[Any, tuple[Tensor, Tensor]]:
    parts = module.num_layers * (1 + module.bidirectional)
    if isinstance(batch, tuple):
        x, batch = packed(batch, module.input_size), len(batch)
    else:
        shape = (batch, 9) if module.batch_first else (9, batch)
        x = torch.randn(*shape, module.input_size)
    return x, tuple(torch.randn(parts, batch, module.hidden_size) for _ in range(2))


def results(module: LayerNormLSTM, x: Any, state: tuple[Tensor, Tensor], gradients: bool) -> list[Tensor]:
    """What comes of a module, and the gradients of all that goes into it, by one upstream."""
    dtype = module.weight_ih_l0.dtype
    leaves = [part.to(dtype).detach().requires_grad_(gradients) for part in (getattr(x, "data", x), *state)]
    x = x._replace(data=leaves[0]) if isinstance(x, PackedSequence) else leaves[0]
    output, last = module(x, (leaves[1], leaves[2]))
    found = [output.data if isinstance(output, PackedSequence) else output, *last]
    if not gradients:
        return found
    upstream = [torch.linspace(-1, 1, part.numel(), dtype=dtype).view(part.shape).cos() for part in found]
    grads = torch.autograd.grad(found, [*leaves, *module.parameters()], upstream)
    # Of a single number most may cancel out: the error of all together.
    return [torch.cat([grad.reshape(-1) for grad in grads])]


def rounded(module: LayerNormLSTM) -> LayerNormLSTM:
    """In float64, with parameters that are a rounding of float32 away."""
    found = copy.deepcopy(module).double()
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(1 + torch.randn_like(parameter) * 2**-24)
    return found


def assert_same(module: LayerNormLSTM, batch: Any, gradients: bool) -> None:
    x, state = arguments(module, batch)
    exact, nearby = (results(one, x, state, gradients) for one in (copy.deepcopy(module).double(), rounded(module)))
    with aigc_fast.backend("reference"):
        theirs = results(module, x, state, gradients)
    with launches() as called:
        found = results(module, x, state, gradients)
    assert "recurrent" in called
    assert ("recurrent_backward" in called) == gradients
    # Of sums that hardly differ normalization makes large ones, step after step.
    for ours, pytorchs, reference, near in zip(found, theirs, exact, nearby, strict=True):
        assert_parity(ours, pytorchs, reference, nearby=near)


@needs_native
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize(("inputs", "hidden", "layers", "batch", "options"), CASES, ids=IDS)
def test_one_native_call_on_every_level(
    inputs: int, hidden: int, layers: int, batch: Any, options: dict[str, Any], gradients: bool, isa: str
) -> None:
    assert_same(drawn(inputs, hidden, layers, **options), batch, gradients)


@needs_native
@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
def test_long_sums_round_as_little_as_pytorchs(gradients: bool, isa: str) -> None:
    """Normalization shows what they differ by."""
    module = drawn(256, 256)
    x, state = torch.randn(4, 16, 256), tuple(torch.randn(1, 16, 256) for _ in range(2))
    exact = results(copy.deepcopy(module).double(), x, state, gradients)
    with aigc_fast.backend("reference"):
        theirs = results(module, x, state, gradients)
    for each in zip(results(module, x, state, gradients), theirs, exact, strict=True):
        assert_parity(*each)


@needs_native
@pytest.mark.parametrize("batch", [2, 26])  # few rows, whose units are divided, and enough to divide rows
@pytest.mark.parametrize("bidirectional", [False, True])
def test_any_number_of_threads_gives_the_same_numbers(
    batch: int, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, before = drawn(40, 70, 3, bidirectional=bidirectional), torch.get_num_threads()
    x, state = arguments(module, batch)
    monkeypatch.setattr(cpu, "LEAST_STEP_WORK", 1 << 8)
    monkeypatch.setattr(cpu, "WAIT_WORK", 1 << 40)
    runs = []
    try:
        for threads, share in itertools.product((1, 2, 3, 5), (0.0, float("inf"))):
            torch.set_num_threads(threads)
            monkeypatch.setattr(cpu, "WAVE_SHARE", share)
            output, last = module(x, state)
            # Products over all rows, which make the gradients between layers, are PyTorch's, whose order of sums is
            # its own.
            wanted = [part[: 1 + bidirectional].clone().requires_grad_() for part in state]
            top = first_layer(module)(x, tuple(wanted))[0]
            runs.append([output, *last, *torch.autograd.grad(top.square().sum(), wanted)])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert torch.equal(one, other)


def first_layer(module: LayerNormLSTM) -> LayerNormLSTM:
    """Its first layer."""
    first = LayerNormLSTM(module.input_size, module.hidden_size, bidirectional=module.bidirectional)
    first.load_state_dict({name: value for name, value in module.state_dict().items() if "_l0" in name})
    return first


@needs_native
def test_weights_are_kept_packed_until_they_change() -> None:
    module, x, packs = drawn(40, 48), torch.randn(3, 2, 40), []
    with torch.no_grad():
        for _ in range(4):
            with launches() as called:
                module(x)
            packs.append(called.count("recurrent_pack"))
        assert packs == [0, 2, 0, 0]
        module.weight_hh_l0.data.mul_(0.5)
        for _ in range(3):
            exact = copy.deepcopy(module).double()(x.double())[0]
            assert relative_error(module(x)[0], exact) < 1e-5


@needs_native
@pytest.mark.parametrize(("weights", "most"), [("fp32", 1e-5), ("bf16", 2e-2), ("int8", 0.1)])
def test_weights_kept_in_fewer_bits(weights: str, most: float, isa: str) -> None:
    module, x = drawn(32, 48, 2), torch.randn(6, 2, 32)
    exact = copy.deepcopy(module).double()(x.double())[0]
    module.weights = weights
    with torch.no_grad(), launches() as called:
        assert relative_error(module(x)[0], exact) < most
    assert "recurrent" in called


@needs_native
def test_one_sequence_in_bfloat16(isa: str) -> None:
    module, x = drawn(6, 18, 2, dtype=torch.bfloat16), torch.randn(5, 1, 6).bfloat16()
    with torch.no_grad(), launches() as called:
        found = module(x)[0]
    assert called.count("recurrent") == native.kernels().recurrent_takes_pairs()
    exact = copy.deepcopy(module).double()(x.double())[0]
    assert found.dtype == torch.bfloat16
    assert relative_error(found, exact) < 3e-2


def test_steps_are_those_of_a_sequence() -> None:
    module, x, state = drawn(5, 17, 2), torch.randn(6, 3, 5), None
    with torch.no_grad():
        expected, last = module(x)
        for now, top in zip(x, expected, strict=True):
            found, state = module.step(now, state)
            assert torch.equal(found, top)
    for one, other in zip(state, last, strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="is bidirectional"):
        LayerNormLSTM(5, 7, bidirectional=True).step(x[0])


def test_tokens_are_drawn_alike_by_every_backend() -> None:
    module, embedding, head = drawn(8, 24, 2), nn.Embedding(11, 8), nn.Linear(24, 11)
    tokens, key = torch.tensor([3, 1, 4]), torch.tensor([5, 9])
    with torch.no_grad():
        head.weight.mul_(6)
    drawn_by = []
    for name in ("auto", "reference"):
        with aigc_fast.backend(name):
            drawn_by.append(module.sample(embedding, head, tokens, length=40, key=key))
    (ids, states), (others, expected) = drawn_by
    assert torch.equal(ids, others)
    for one, other in zip(states, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_second_gradients() -> None:
    module, x = module_of(bidirectional=True), torch.randn(3, 2, 5).double().requires_grad_()
    params = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    states = [torch.randn(4, 2, 7).double().requires_grad_() for _ in range(2)]
    numbers = LAYER_NORM_LSTM, 2, True, True, False, 1e-5, True

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return RECURRENT(x, None, list(tensors[:2]), list(tensors[2:]), *numbers)[:3]

    assert torch.autograd.gradgradcheck(run, (x, *states, *params), nondet_tol=0.0, fast_mode=True)


def test_second_gradients_in_float32() -> None:
    module, x = drawn(5, 7, 2), torch.randn(3, 2, 5)

    def second(module: LayerNormLSTM, x: Tensor) -> Tensor:
        first = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()), create_graph=True)
        found = torch.autograd.grad(sum(part.square().sum() for part in first), list(module.parameters()))
        return torch.cat([part.reshape(-1) for part in found])

    assert relative_error(second(module, x), second(copy.deepcopy(module).double(), x.double())) < 1e-4


@needs_native
@pytest.mark.parametrize("gradients", [False, True])
def test_opcheck(gradients: bool) -> None:
    module = drawn(5, 7, 2)
    x, state = arguments(module, 2)
    tensors = [tensor.detach().requires_grad_(gradients) for tensor in (x, *state, *module.parameters())]
    numbers = LAYER_NORM_LSTM, 2, False, True, False, 1e-5, gradients
    opcheck(torch.ops.aigc_fast.recurrent.default, (tensors[0], None, list(tensors[1:3]), list(tensors[3:]), *numbers))


@pytest.mark.slow
def test_compiled_and_exported() -> None:
    module, x = drawn(5, 7, 2), torch.randn(3, 2, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))
    loss = compiled(x)[0].sum()
    for found, expected in zip(
        torch.autograd.grad(loss, list(module.parameters())),
        torch.autograd.grad(module(x)[0].sum(), list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    exported = torch.export.export(module, (x,))
    torch.testing.assert_close(exported.module()(x), module(x))


def test_autocast_keeps_to_pytorchs_operators() -> None:
    module, x = drawn(6, 8, 2), torch.randn(4, 2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x)[0]
    assert relative_error(found, module(x)[0]) < 3e-2


def test_nan_stays_in_its_sequence() -> None:
    module, x = drawn(3, 5), torch.randn(4, 3, 3)
    x[1, 0] = torch.nan
    output = module(x)[0]
    assert output[1:, 0].isnan().all()
    assert not output[:1].isnan().any()
    assert not output[:, 1:].isnan().any()


def test_a_packed_sequence_is_its_sequences_alone() -> None:
    module = drawn(5, 7, 2, bidirectional=True)
    sequences = [torch.randn(length, 5) for length in (2, 6, 4)]
    output, (hidden, cells) = module(pack_sequence(sequences, enforce_sorted=False))
    found, lengths = torch.nn.utils.rnn.pad_packed_sequence(output)
    for i, sequence in enumerate(sequences):
        expected, (last, last_cells) = module(sequence)
        torch.testing.assert_close(found[: lengths[i], i], expected)
        torch.testing.assert_close(hidden[:, i], last)
        torch.testing.assert_close(cells[:, i], last_cells)
