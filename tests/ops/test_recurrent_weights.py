"""Recurrent networks whose weights are kept in fewer bits: against float64 with weights and rows rounded alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from parity import relative_error
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.ops.recurrent.sampling import sample_tokens
from aigc_fast.runtime import native
from aigc_fast.runtime.weights import WEIGHTS

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
# Of what the rounding itself changes: a number halfway between two steps may be rounded either way.
NEAR = 0.1
MOST = {"fp32": 1e-5, "bf16": 5e-3, "int8": 4e-2, "int4": 0.2}


def in_steps(x: Tensor) -> Tensor:
    """Rows as integers of 8 bits with a scale of their own."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return torch.where(scale > 0, (x / scale).round() * scale, x)


def in_steps_by_groups(x: Tensor) -> Tensor:
    """The same with a scale for every 32 numbers."""
    return torch.cat([in_steps(group) for group in x.split(32, -1)], -1)


ROUNDINGS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "fp32": (lambda w: w, lambda x: x),
    "bf16": (lambda w: w.bfloat16().to(w.dtype), lambda x: x),
    "int8": (in_steps, in_steps_by_groups),
}


def by_equations(module: nn.RNNBase, x: Tensor, weights: str) -> Tensor:
    """The output of one layer in float64, (T, B, H), its weights and the rows that they multiply rounded."""
    of_weight, of_row = ROUNDINGS[weights]
    p = {name: value.double() for name, value in module.named_parameters()}
    of_input, of_hidden = of_weight(p["weight_ih_l0"]), of_weight(p["weight_hh_l0"])
    h = c = torch.zeros(x.shape[1], module.hidden_size).double()
    found = []
    for now in x.double():
        given = of_row(now) @ of_input.T + p["bias_ih_l0"]
        past = of_row(h) @ of_hidden.T + p["bias_hh_l0"]
        if module.mode == "LSTM":
            i, f, g, o = (given + past).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        elif module.mode == "GRU":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = given.chunk(3, -1), past.chunk(3, -1)
            fresh, update = (x_n + (x_r + h_r).sigmoid() * h_n).tanh(), (x_z + h_z).sigmoid()
            h = (1 - update) * fresh + update * h
        else:
            h = (given + past).tanh() if module.mode == "RNN_TANH" else (given + past).relu()
        found.append(h)
    return torch.stack(found)


@pytest.mark.parametrize("weights", ROUNDINGS)
@pytest.mark.parametrize("level", native.levels())
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_every_level_rounds_alike(cell: str, level: str, weights: str) -> None:
    torch.manual_seed(1)
    for inputs, hidden, batch in ((16, 16, 1), (17, 33, 3), (5, 70, 2), (64, 129, 1), (3, 8, 60)):
        module = getattr(fast_nn, cell)(inputs, hidden)
        module.weights = weights
        x = torch.randn(4, batch, inputs)
        with torch.no_grad(), native.use_level(level):
            found = module(x)[0]
            exact = copy.deepcopy(module).double()(x.double())[0]
            rounded = by_equations(module, x, weights)
        changed = relative_error(rounded, exact)
        assert relative_error(found, rounded) < max(NEAR * changed, 1e-5), (inputs, hidden, batch)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("level", native.levels())
def test_every_network_is_near_the_exact_one(level: str, weights: str) -> None:
    torch.manual_seed(2)
    for cell, options in (
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", {"proj_size": 9, "batch_first": True}),
        ("GRU", {"bias": False, "num_layers": 3}),
        ("RNN", {"nonlinearity": "relu"}),
    ):
        module = getattr(fast_nn, cell)(37, 41, **options)
        module.weights = weights
        x = torch.randn(5, 6, 37)
        packed = pack_sequence([torch.randn(length, 37) for length in (5, 2, 4)], enforce_sorted=False)
        with torch.no_grad(), native.use_level(level):
            for given in (x, packed):
                found, state = module(given)
                exact, last = copy.deepcopy(module).double()(given.to(torch.float64))
                pair = (found, exact) if given is x else (found.data, exact.data)
                assert relative_error(*pair) < MOST[weights], cell
                tops = (state[0], last[0]) if cell == "LSTM" else (state, last)
                assert relative_error(*tops) < MOST[weights], cell


@pytest.mark.parametrize("weights", WEIGHTS)
def test_rows_and_threads_change_nothing(weights: str) -> None:
    module = fast_nn.LSTM(64, 96, 2)
    module.weights = weights
    x, threads = torch.randn(5, 7, 64), torch.get_num_threads()
    with torch.no_grad():
        whole = module(x)[0]
        rows = torch.cat([module(x[:, i : i + 1])[0] for i in range(7)], 1)
        try:
            torch.set_num_threads(3)
            other = module(x)[0]
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(other, whole)
    assert weights == "fp32" or torch.equal(rows, whole)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_drawn_tokens_and_steps_use_the_same_weights(cell: str, weights: str) -> None:
    torch.manual_seed(4)
    module, embedding, head = getattr(fast_nn, cell)(24, 40, 2), nn.Embedding(70, 24), nn.Linear(40, 70)
    module.weights = weights
    first = torch.tensor([3])
    ids, last = sample_tokens(module, embedding, head, first, None, 40)
    state = None
    with torch.no_grad():
        for token in torch.cat([first, ids[:-1]]):
            _, state = module.step(embedding(token[None]), state)
    torch.testing.assert_close(last, state)
    greedy, _ = sample_tokens(module, embedding, head, first, None, 1, temperature=0.0)
    with torch.no_grad():
        logits = head(module.step(embedding(first))[0])[0]
    assert logits.max() - logits[greedy] <= MOST[weights] * logits.abs().max()


def test_gradients_and_other_dtypes_take_weights_as_they_are() -> None:
    module = fast_nn.LSTM(8, 16)
    x = torch.randn(3, 2, 8)
    plain = module(x)[0]
    module.weights = "int4"
    assert torch.equal(module(x)[0], plain)
    with torch.no_grad():
        assert not torch.equal(module(x)[0], plain)
        assert relative_error(module.double()(x.double())[0], plain.double()) < 1e-5


def test_weights_that_change_are_packed_anew() -> None:
    module = fast_nn.GRU(32, 64)
    module.weights = "int8"
    x = torch.randn(200, 1, 32)
    with torch.no_grad():
        for _ in range(3):
            before = module(x)[0]
        module.weight_hh_l0.data.mul_(0.5)
        after = module(x)[0]
        fresh = fast_nn.GRU(32, 64)
        fresh.load_state_dict(module.state_dict())
        fresh.weights = "int8"
        assert torch.equal(fresh(x)[0], after)
    assert not torch.equal(before, after)


@pytest.mark.parametrize("inplace", [True, False])
def test_optimize_says_how_weights_are_kept(inplace: bool) -> None:
    model = nn.ModuleDict({"rnn": nn.GRU(8, 16), "other": nn.Linear(3, 3)})
    fast = aigc_fast.optimize(model, weights="int8", inplace=inplace)
    assert fast["rnn"].weights == "int8"
    aigc_fast.restore(fast)
    assert type(fast["rnn"]) is nn.GRU
    assert not hasattr(fast["rnn"], "weights")
    with pytest.raises(ValueError, match="weights='int3': expected None or one of 'fp32', 'bf16', 'int8', 'int4'"):
        aigc_fast.optimize(model, weights="int3")


def test_a_torch_that_lends_no_tensors_keeps_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = fast_nn.LSTM(16, 24), torch.randn(3, 2, 16)
    module.weights = "int8"
    with torch.no_grad():
        expected = module(x)[0]
        monkeypatch.setattr(native, "takes_tensors", False)
        assert torch.equal(module(x)[0], expected)
