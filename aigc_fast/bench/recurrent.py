"""Recurrent networks, and sequences that they draw, against PyTorch's modules, its cells and ONNX Runtime."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from aigc_fast import nn as fast_nn
from aigc_fast.bench import peers
from aigc_fast.bench.calls import TRAINING, Case, Sampled, Sequences
from aigc_fast.bench.contest import OURS, PYTORCH, Call, Contest, against_float64
from aigc_fast.bench.machine import products
from aigc_fast.bench.parity import ParityError
from aigc_fast.ops.recurrent import reference
from aigc_fast.ops.recurrent.sampling import sample_tokens
from aigc_fast.ops.recurrent.sizes import LAYER_NORM_LSTM, Options

# ONNX's order of the gates, of PyTorch's.
_ONNX_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
_CELLS = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}
_LETTERS = 64


class _LayerNormLSTM(fast_nn.LayerNormLSTM):
    """By PyTorch's operators, step by step, as one would write what it lacks."""

    def forward(self, input: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        options = Options(LAYER_NORM_LSTM, self.num_layers, self.bidirectional, True, self.batch_first, self.eps)
        zeros = input.new_zeros(options.parts, input.shape[0], self.hidden_size)
        params = [getattr(self, name) for names in self._all_weights for name in names]
        output, hidden, cells, _ = reference.recurrent(input, None, (zeros, zeros), params, *options, False)
        return output, (hidden, cells)


def sequences(case: Case) -> Contest:
    """A module's forward, or its gradients too: PyTorch's with oneDNN and without, and ONNX Runtime's."""
    call: Sequences = case.call
    dtype = getattr(torch, case.dtype)
    options = {"num_layers": call.layers, "bidirectional": call.bidirectional, "batch_first": True}
    stocks = _LayerNormLSTM if call.cell == "LayerNormLSTM" else getattr(nn, call.cell)
    theirs = stocks(call.hidden, call.hidden, **options).to(dtype)
    ours = getattr(fast_nn, call.cell)(call.hidden, call.hidden, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    exact = copy.deepcopy(theirs).double()
    x = torch.randn(call.batch, call.steps, call.hidden).to(dtype)
    trains = case.mode == TRAINING

    def run(module: nn.Module, x: Tensor) -> Sequence[Tensor]:
        return _gradients(module, call, x) if trains else _output(module, call, x)

    def without_onednn() -> Sequence[Tensor]:
        with torch.backends.mkldnn.flags(enabled=False):
            return run(theirs, x)

    stock: dict[str, Call] = {PYTORCH: partial(run, theirs, x)}
    if x.is_cpu:
        stock[f"{PYTORCH} without oneDNN"] = without_onednn
    others: dict[str, Call | None] = {}
    if not trains and call.steps == 1:
        others["cell"] = partial(_cell, theirs, x)
    in_onnx = call.cell in _ONNX_GATES and call.layers == 1 and not (call.packed or call.bidirectional)
    if not trains and dtype == torch.float32 and in_onnx:
        others["ONNX Runtime"] = _in_onnx(theirs, call, x)
    there = peers.present(others)
    mine = {OURS: partial(run, ours, x)}
    gate = against_float64(mine, {PYTORCH: stock[PYTORCH]}, partial(run, exact, x.double()), dtype, there)
    work = products(dtype, case.operations)
    return Contest(mine, stock | there, gate, work, peers.absent(others))


def _given(call: Sequences, x: Tensor) -> Tensor | PackedSequence:
    return pack_padded_sequence(x, call.lengths(), batch_first=True) if call.packed else x


def _output(module: nn.Module, call: Sequences, x: Tensor) -> tuple[Tensor]:
    with torch.no_grad():
        found = module(_given(call, x))[0]
    return (found.data if call.packed else found,)


def _gradients(module: nn.Module, call: Sequences, x: Tensor) -> Sequence[Tensor]:
    x = x.detach().requires_grad_()
    found = module(_given(call, x))[0]
    found = found.data if call.packed else found
    return torch.autograd.grad(found, [x, *module.parameters()], found.detach())


def _cell(module: nn.RNNBase, x: Tensor) -> tuple[Tensor]:
    cell = _cell_of(module)
    with torch.no_grad():
        found = cell(x[:, 0])
    return ((found[0] if module.mode == "LSTM" else found)[:, None],)


def _cell_of(module: nn.RNNBase) -> nn.RNNCellBase:
    """PyTorch's cell with the weights of a network of one layer."""
    cell = _CELLS[type(module).__name__](module.input_size, module.hidden_size).to(module.weight_ih_l0.dtype)
    for name, parameter in cell.named_parameters():
        parameter.data = getattr(module, f"{name}_l0").data
    return cell


def _in_onnx(module: nn.RNNBase, call: Sequences, x: Tensor) -> Call | None:
    hidden = call.hidden

    def reordered(parameter: Tensor) -> Tensor:
        return torch.cat([parameter.detach()[gate * hidden :][:hidden] for gate in _ONNX_GATES[call.cell]])

    weights = {"w": reordered(module.weight_ih_l0)[None], "r": reordered(module.weight_hh_l0)[None]}
    weights["b"] = torch.cat([reordered(module.bias_ih_l0), reordered(module.bias_hh_l0)])[None]
    more = {"linear_before_reset": 1} if call.cell == "GRU" else {}
    sizes = call.steps, 1, call.batch, hidden
    run = peers.onnx_runtime(call.cell, {"x": x.transpose(0, 1)}, weights, sizes, opset=14, hidden_size=hidden, **more)
    return run and (lambda: (run()[0][:, 0].transpose(0, 1),))


def sampled(case: Case) -> Contest:
    """Characters one after another: ours in one call, PyTorch's by loops over its cell or its module."""
    call: Sampled = case.call
    module = getattr(nn, call.cell)(call.hidden, call.hidden)
    ours = getattr(fast_nn, call.cell)(call.hidden, call.hidden)
    ours.load_state_dict(module.state_dict())
    embedding, head = nn.Embedding(_LETTERS, call.hidden), nn.Linear(call.hidden, _LETTERS)
    first = torch.tensor([1])
    cell = _cell_of(module)

    def by_cell() -> Sequence[Tensor]:
        return (_loop(call.length, embedding, head, lambda x, state: _step_of(cell, x, state)),)

    def by_module() -> Sequence[Tensor]:
        def step(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            output, state = module(x[None], state)
            return output[0], state

        return (_loop(call.length, embedding, head, step),)

    def mine() -> Sequence[Tensor]:
        return (sample_tokens(ours, embedding, head, first, None, call.length)[0],)

    def gate() -> tuple[float, float]:
        return _gate_of_sampled(ours, module, embedding, head, call.length)

    return Contest({OURS: mine}, {"a loop over the cell": by_cell, "a loop over the module": by_module}, gate)


def _step_of(cell: nn.RNNCellBase, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state = cell(x, state)
    return (state[0] if isinstance(state, tuple) else state), state


def _loop(
    length: int, embedding: nn.Embedding, head: nn.Linear, step: Callable[[Tensor, Any], tuple[Tensor, Any]]
) -> Tensor:
    """As users write it: an embedding, a step, a head and `torch.multinomial`."""
    token, state, found = torch.tensor([1]), None, []
    with torch.no_grad():
        for _ in range(length):
            hidden, state = step(embedding(token), state)
            token = torch.multinomial(head(hidden).softmax(-1), 1)[:, 0]
            found.append(token)
    return torch.cat(found)


def _gate_of_sampled(
    ours: nn.RNNBase, module: nn.RNNBase, embedding: nn.Embedding, head: nn.Linear, length: int
) -> tuple[float, float]:
    """The states after the drawn tokens, and how likely these are, must be those of PyTorch's module."""
    first = torch.tensor([1])
    ids, state = sample_tokens(ours, embedding, head, first, None, length)
    fed = embedding(torch.cat([first, ids[:-1]]))
    with torch.no_grad():
        _, wanted = copy.deepcopy(module).double()(fed[:, None].double())
        hidden, own = module(fed[:, None])
        log_likelihood = head(hidden[:, 0]).log_softmax(-1).gather(1, ids[:, None]).mean().item()
    # Of draws from nearly equal logits: ids that follow other probabilities are far less likely.
    if not math.isfinite(log_likelihood) or log_likelihood < -1.5 * math.log(_LETTERS):
        raise ParityError(f"the tokens have a mean log-likelihood of {log_likelihood:.2f}")
    pick = (lambda states: [states[0]]) if module.mode == "LSTM" else (lambda states: [states])
    ways = {OURS: partial(pick, state)}, {PYTORCH: partial(pick, own)}
    return against_float64(*ways, partial(pick, wanted), torch.float32)()
