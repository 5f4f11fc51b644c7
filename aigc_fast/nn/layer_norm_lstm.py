"""An LSTM whose sums are normalized by layer, which PyTorch lacks."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from aigc_fast.nn.recurrent import Stepwise, forward


class LayerNormLSTM(Stepwise, nn.Module):
    """A stack of layer-normalized LSTMs (Ba, Kiros and Hinton, "Layer normalization", 2016, equations 20 to 22).

    With LN a layer norm over the last dimension, each with its own gain and bias:
    ``i, f, g, o = LN(W_ih x) + LN(W_hh h)``; ``c' = sigmoid(f) * c + sigmoid(i) * tanh(g)``;
    ``h' = sigmoid(o) * tanh(LN(c'))``.

    Args:
        input_size, hidden_size, num_layers: as in torch.nn.LSTM.
        batch_first: whether input and output are (B, T, size) rather than (T, B, size).
        dropout: the probability of dropping elements of the output of each layer but the last, in training.
        eps: added to variances.
        device, dtype: of the parameters.
        bidirectional: whether each layer also reads its input backwards, with separate parameters.

    Attributes:
        weight_ih_l[k], weight_hh_l[k], bias_ih_l[k], bias_hh_l[k]: of torch.nn.LSTM's shapes; the biases,
            (4 * hidden_size,), are those of the norms.
        gain_ih_l[k], gain_hh_l[k]: the gains of the norms, (4 * hidden_size,).
        gain_c_l[k], bias_c_l[k]: gain and bias of the cell's norm, (hidden_size,).
        weight_ih_l[k]_reverse, ...: the same of the other direction.
        weights: as that of `aigc_fast.nn.LSTM`.

    Raises:
        ValueError: if a size is not positive, or the probability is outside [0, 1].
    """

    # Further attributes of PyTorch's recurrent modules.
    mode, bias, proj_size = "LAYER_NORM_LSTM", True, 0

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
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("input_size", input_size), ("hidden_size", hidden_size), ("num_layers", num_layers)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: expected a positive number")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout!r}: expected a probability between 0 and 1")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.eps = batch_first, float(dropout), eps
        self.bidirectional = bidirectional
        gates, directions = 4 * hidden_size, 2 if bidirectional else 1
        self._all_weights = []
        for layer, suffix in itertools.product(range(num_layers), ("", "_reverse")[:directions]):
            shapes = {
                "weight_ih": (gates, directions * hidden_size if layer else input_size),
                "weight_hh": (gates, hidden_size),
                **{name: (gates,) for name in ("bias_ih", "bias_hh", "gain_ih", "gain_hh")},
                **{name: (hidden_size,) for name in ("gain_c", "bias_c")},
            }
            for name, shape in shapes.items():
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_l{layer}{suffix}", parameter)
            self._all_weights.append([f"{name}_l{layer}{suffix}" for name in shapes])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initializes the weights as torch.nn.LSTM does, the gains to 1 and the biases to 0."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(parameter, -bound, bound)
            else:
                nn.init.constant_(parameter, float(name.startswith("gain")))

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        shown = f"{self.input_size}, {self.hidden_size}"
        for name, default in (("num_layers", 1), ("batch_first", False), ("dropout", 0.0), ("bidirectional", False)):
            value = getattr(self, name)
            shown += f", {name}={value}" if value != default else ""
        return shown

    def check_forward_args(self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None) -> None:
        """Raises ValueError if the shapes of the input or the states do not match."""
        if input.shape[-1] != self.input_size:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected to end in {self.input_size}")
        if batch_sizes is None and not input.shape[1 if self.batch_first else 0]:
            raise ValueError(f"input has shape {tuple(input.shape)}: expected at least one step")
        batch = input.shape[0 if self.batch_first else 1] if batch_sizes is None else int(batch_sizes[0])
        shape = (self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size)
        for state in hidden:
            if state.shape != shape:
                raise ValueError(f"hx has shape {tuple(state.shape)}: expected {shape}")

    permute_hidden = nn.LSTM.permute_hidden

    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """As torch.nn.LSTM's.

        On the CPU in float32, one native call runs all layers, directions and steps; with dropout between layers it is
        one call per layer. The same holds for one bfloat16 sequence without gradients, where the processor multiplies
        bfloat16. On a GPU, up to 8 sequences run by one launch for each direction of each layer. Everything else runs
        on PyTorch's operators, step by step.

        Args:
            input: (T, B, input_size), (B, T, input_size) with `batch_first`, (T, input_size) for a single sequence, or
                a PackedSequence.
            hx: the initial hidden and cell states, each (num_layers * directions, B, hidden_size), or
                (num_layers * directions, hidden_size) for a single sequence; zeros by default.

        Returns:
            (output, (h_n, c_n)): the hidden states of the last layer, in the input's layout, and the final states.

        Raises:
            ValueError: if shapes do not match, or there is no step.
            RuntimeError: if dtypes or devices do not match.
        """
        return forward(self, input, hx)
