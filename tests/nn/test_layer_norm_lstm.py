"""The layer-normalized LSTM against its equations, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_fast.nn import LayerNormLSTM


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
        (torch.randn(4), None, r"input: got shape \(4,\)"),
        (torch.randn(3, 2, 4), None, r"input: got shape \(3, 2, 4\)"),
        (torch.randn(0, 2, 5), None, "expected a step"),
        (torch.randn(3, 2, 5), (torch.zeros(1, 1, 7), torch.zeros(1, 2, 7)), r"hx: got shape \(1, 1, 7\)"),
    ):
        with pytest.raises(ValueError, match=message):
            module(x, state)
    with pytest.raises(ValueError, match="hidden_size=0"):
        LayerNormLSTM(5, 0)
    with pytest.raises(ValueError, match="dropout=2"):
        LayerNormLSTM(5, 7, dropout=2)
