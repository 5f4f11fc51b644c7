"""An LSTM whose sums are normalized by layer, which PyTorch lacks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from aigc_fast.ops.random.functional import dropout


class LayerNormLSTM(nn.Module):
    """A stack of layer-normalized LSTMs (Ba, Kiros and Hinton, "Layer normalization", 2016, equations 20 to 22).

    With LN the normalization over its last dimension, with a gain and a bias of its own each:
    ``i, f, g, o = LN(W_ih x) + LN(W_hh h)``; ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``;
    ``h' = sigmoid(o) * tanh(LN(c'))``.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn.LSTM.
        batch_first: whether input and output are (B, T, size) rather than (T, B, size).
        dropout: probability with which elements of the output of all layers but the last are dropped in training.
        eps: added to variances.
        device, dtype: of the parameters.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: of torch.nn.LSTM's shapes; the biases are the
            normalizations', (4 * hidden_size,).
        gain_ih_l[k], gain_hh_l[k]: the normalizations' gains, (4 * hidden_size,).
        gain_c_l[k], bias_c_l[k]: those of the cells, (hidden_size,).

    Raises:
        ValueError: on a size that is not positive, or a probability outside of [0, 1].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        batch_first: bool = False,
        dropout: float = 0.0,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: expected a positive number")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout!r}: expected a probability, 0 to 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.eps = batch_first, float(dropout), eps
        gates = 4 * hidden_size
        for layer in range(num_layers):
            shapes = {
                "weight_ih": (gates, hidden_size if layer else input_size),
                "weight_hh": (gates, hidden_size),
                **{name: (gates,) for name in ("bias_ih", "bias_hh", "gain_ih", "gain_hh")},
                **{name: (hidden_size,) for name in ("gain_c", "bias_c")},
            }
            for name, shape in shapes.items():
                self.register_parameter(
                    f"{name}_l{layer}", nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights as torch.nn.LSTM has them at first, gains of 1, biases of 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.constant_(parameter, float(name.startswith("gain")))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        shown = f"{self.input_size}, {self.hidden_size}"
        for name, default in (("num_layers", 1), ("batch_first", False), ("dropout", 0.0)):
            value = getattr(self, name)
            shown += f", {name}={value}" if value != default else ""
        return shown

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As torch.nn.LSTM's of sequences that are not packed.

        Args:
            input: (T, B, input_size), (B, T, input_size) with `batch_first`, or (T, input_size) of a single sequence.
            hx: the hidden states and the cells before, (num_layers, B, hidden_size), or (num_layers, hidden_size);
                zeros by default.

        Returns:
            The hidden states of the last layer, of the input's layout, and the states after the last step.

        Raises:
            ValueError: for shapes that do not fit, or no step.
        """
        is_batched, time = input.dim() == 3, 1 if self.batch_first and input.dim() == 3 else 0
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            raise ValueError(
                f"input: got shape {tuple(input.shape)}, expected 2 or 3 dimensions, {self.input_size} last"
            )
        if not input.shape[time]:
            raise ValueError(f"input: got shape {tuple(input.shape)}, expected a step or more")
        x = input if is_batched else input.unsqueeze(1)
        x = x.transpose(0, 1) if time else x
        shape = (self.num_layers, *([x.shape[1]] if is_batched else []), self.hidden_size)
        if hx is None:
            hx = x.new_zeros(shape), x.new_zeros(shape)
        for state in hx:
            if state.shape != shape:
                raise ValueError(f"hx: got shape {tuple(state.shape)}, expected {shape}")
        hidden, cells = hx if is_batched else (state.unsqueeze(1) for state in hx)
        last = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = dropout(x, self.dropout, self.training)
            x, *ended = self._layer(x, hidden[layer], cells[layer], f"_l{layer}")
            last.append(ended)
        output = x.transpose(0, 1) if time else x
        states = tuple(torch.stack(each) for each in zip(*last, strict=True))
        if is_batched:
            return output, states
        return output.squeeze(1), tuple(state.squeeze(1) for state in states)

    def _normalized(self, x: Tensor, kind: str) -> Tensor:
        gain, bias = getattr(self, f"gain{kind}"), getattr(self, f"bias{kind}")
        return TF.layer_norm(x, gain.shape, gain, bias, self.eps)

    def _layer(self, x: Tensor, hidden: Tensor, cell: Tensor, layer: str) -> tuple[Tensor, Tensor, Tensor]:
        """The hidden states of all steps, and the states after the last one."""
        of_hidden = getattr(self, f"weight_hh{layer}")
        given = self._normalized(TF.linear(x, getattr(self, f"weight_ih{layer}")), f"_ih{layer}")
        found = []
        for of_input in given.unbind(0):
            sums = of_input + self._normalized(TF.linear(hidden, of_hidden), f"_hh{layer}")
            i, f, g, o = sums.chunk(4, -1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * self._normalized(cell, f"_c{layer}").tanh()
            found.append(hidden)
        return torch.stack(found), hidden, cell
