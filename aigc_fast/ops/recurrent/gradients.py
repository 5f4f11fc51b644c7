"""The gradients of parameters, from those of the gates' sums in all rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aigc_fast.ops.linear.products import multiply
from aigc_fast.ops.recurrent.sizes import GRU, Options


def fill_params(to_params: Sequence[Tensor], to_gates: Tensor, input: Tensor, before: Tensor, options: Options) -> None:
    """The gradients of weights and biases, from those of the gates' sums in all rows."""
    of_input, of_hidden, *biases = to_params
    count, hidden = of_input.shape[0], of_input.shape[0] // 3
    multiply(to_gates[:, :count].t(), input, of_input)
    if options.has_biases:
        torch.sum(to_gates[:, :count], 0, out=biases[0])
    # In a GRU's new gate, the product with the hidden state is multiplied by the reset gate: it counts as a fourth
    # gate.
    same = 2 * hidden if options.mode == GRU else count
    multiply(to_gates[:, :same].t(), before, of_hidden[:same])
    if options.has_biases:
        biases[1][:same] = biases[0][:same]
    if options.mode == GRU:
        multiply(to_gates[:, count:].t(), before, of_hidden[same:])
        if options.has_biases:
            torch.sum(to_gates[:, count:], 0, out=biases[1][same:])


def fill_normalized(
    to_params: Sequence[Tensor],
    params: Sequence[Tensor],
    to_sums: Tensor,
    kept: Tensor,
    to_normalized: Tensor,
    cells: Tensor,
    input: Tensor,
    before: Tensor,
    eps: float,
) -> Tensor:
    """The gradients of a normalized LSTM's parameters, from those of the sums, and then of the products with the hidden
    state, in all rows; returns those of the products with the input.

    Args:
        to_params, params: of the direction.
        to_sums: (rows, 8 * hidden).
        kept: (rows, 8 * hidden), the products in its second half.
        to_normalized: (rows, hidden), the gradients of the normalized cells.
        cells: (rows, hidden).
        input, before: of the two products.
        eps: added to variances.
    """
    count = to_sums.shape[1] // 2
    to_sums, to_products = to_sums[:, :count], to_sums[:, count:]
    of_input, of_hidden, bias_input, bias_hidden, gain_input, gain_hidden, gain_cells, bias_cells = to_params
    products = multiply(input, params[0].t(), to_sums.new_empty(to_sums.shape))
    to_input_products = _normalized_backward(to_sums, products, params[4], eps, (gain_input, bias_input), True)
    _normalized_backward(to_sums, kept[:, count:], params[5], eps, (gain_hidden, bias_hidden))
    _normalized_backward(to_normalized, cells, params[6], eps, (gain_cells, bias_cells))
    multiply(to_input_products.t(), input, of_input)
    multiply(to_products.t(), before, of_hidden)
    return to_input_products


def _normalized_backward(
    grad: Tensor, x: Tensor, gain: Tensor, eps: float, results: tuple[Tensor, Tensor], to_x: bool = False
) -> Tensor | None:
    """Fills the gradients of a gain and a bias; returns those of what is normalized, where they are wanted."""
    x, grad = x.contiguous(), grad.contiguous()
    _, mean, scale = torch.native_layer_norm(x, gain.shape, None, None, eps)
    found = torch.ops.aten.native_layer_norm_backward(grad, x, gain.shape, mean, scale, gain, gain, [to_x, True, True])
    for result, part in zip(results, found[1:], strict=True):
        result.copy_(part)
    return found[0]
