"""Elman's network in its plainest form: two linear maps of what comes in and what is remembered."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aigc_fast import functional


class ElmanCell(nn.Module):
    """One step of Elman's network (Elman, "Finding Structure in Time", 1990) with its output.

    Of the input and the hidden state, joined, `i2h` and a tanh make the next hidden state, and `i2o` and a log-softmax
    the output, which so depends on the hidden state before the step. Parameters are called as in PyTorch's tutorial on
    character models.

    Args:
        input_size: features of the input.
        hidden_size: units of the hidden state.
        output_size: classes of the output.
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size, self.hidden_size, self.output_size = input_size, hidden_size, output_size
        self.i2h = nn.Linear(input_size + hidden_size, hidden_size)
        self.i2o = nn.Linear(input_size + hidden_size, output_size)
        self.softmax = nn.LogSoftmax(dim=1)

    def forward(self, input: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            input: (N, input_size).
            hidden: (N, hidden_size), at first `init_hidden`'s.

        Returns:
            Logarithms of the classes' probabilities (N, output_size), and the next hidden state.
        """
        joined = torch.cat([input, hidden], dim=1)
        return self.softmax(self.i2o(joined)), torch.tanh(self.i2h(joined))

    def init_hidden(self, batch: int = 1) -> Tensor:
        """The hidden state at the beginning, zeros (batch, hidden_size)."""
        return self.i2h.weight.new_zeros(batch, self.hidden_size)

    def sequence(self, data: Tensor, batch_sizes: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Many steps of packed sequences, to rounding as `forward` makes them one by one, in one recurrent call.

        Args:
            data: (total, input_size), a PackedSequence's.
            batch_sizes: a PackedSequence's.
            hidden: (N, hidden_size), in the order of the packed sequences.

        Returns:
            Logarithms of the classes' probabilities (total, output_size), and the last hidden state of each sequence.
        """
        weights = [part.contiguous() for part in self.i2h.weight.split([self.input_size, self.hidden_size], dim=1)]
        params = [*weights, self.i2h.bias, torch.zeros_like(self.i2h.bias)]
        states, last = functional.rnn_tanh(data, batch_sizes, hidden[None], params, True, 1, 0.0, self.training, False)
        before = torch.cat([hidden, states])[_before(batch_sizes).to(hidden.device)]
        return self.softmax(self.i2o(torch.cat([data, before], dim=1))), last[0]


def _before(batch_sizes: Tensor) -> Tensor:
    """Where the state before each packed step is, in the states at the beginning followed by those after each step."""
    starts = batch_sizes.cumsum(0) - batch_sizes
    rows = torch.arange(int(batch_sizes.sum())) - starts.repeat_interleave(batch_sizes)
    first = torch.cat([starts.new_zeros(1), starts[:-1] + batch_sizes[0]])
    return rows + first.repeat_interleave(batch_sizes)
