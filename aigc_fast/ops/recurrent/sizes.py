"""What a call's numbers and the shapes of its tensors say together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from aigc_fast.runtime import native
from aigc_fast.runtime.arguments import numbers_of

MODES = "RNN_TANH", "RNN_RELU", "LSTM", "GRU", "LAYER_NORM_LSTM"
CODES = dict(zip(MODES, native.codes("recurrent_modes", *MODES), strict=True))
RNN_TANH, RNN_RELU, LSTM, GRU, LAYER_NORM_LSTM = CODES.values()
GATES = {RNN_TANH: 1, RNN_RELU: 1, LSTM: 4, GRU: 3, LAYER_NORM_LSTM: 4}
# The cells with a second state.
WITH_CELLS = frozenset((LSTM, LAYER_NORM_LSTM))
# Numbers of a hidden unit that a step leaves for backward: its activated gates, of a GRU the product within its reset
# gate besides, of a normalized LSTM the products with the hidden state.
KEPT_GATES = {RNN_TANH: 1, RNN_RELU: 1, LSTM: 4, GRU: 4, LAYER_NORM_LSTM: 8}


class Options(NamedTuple):
    """What a call is told besides tensors.

    Attributes:
        mode: of `MODES`, by its code.
        layers: their number.
        bidirectional: whether each layer has a second direction.
        has_biases: whether each direction of a layer has two.
        batch_first: whether input and output are (batch, steps, size) rather than (steps, batch, size).
        eps: added to the variances of a normalized LSTM.
    """

    mode: int
    layers: int
    bidirectional: bool
    has_biases: bool
    batch_first: bool
    eps: float = 0.0

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def states(self) -> int:
        """How many states there are, one or two."""
        return 1 + (self.mode in WITH_CELLS)

    @property
    def parts(self) -> int:
        """Directions of layers."""
        return self.layers * self.directions


class Sizes(NamedTuple):
    """The sizes of a call.

    Attributes:
        steps: of the longest sequence.
        batch: sequences.
        rows: steps of all sequences.
        hidden: units.
        size: numbers of a hidden state, fewer where it is projected.
    """

    steps: int
    batch: int
    rows: int
    hidden: int
    size: int

    @property
    def projected(self) -> int:
        """The size of projected hidden states, 0 where they are not."""
        return self.size if self.size != self.hidden else 0


def sizes_of(input: Tensor, batch_sizes: Tensor | None, states: Sequence[Tensor], options: Options) -> Sizes:
    """The sizes of a call whose arguments fit each other."""
    batch, size = states[0].shape[1], states[0].shape[2]
    hidden = states[-1].shape[2]
    if batch_sizes is not None:
        return Sizes(batch_sizes.shape[0], batch, input.shape[0], hidden, size)
    steps = input.shape[1 if options.batch_first else 0]
    return Sizes(steps, batch, steps * batch, hidden, size)


def counts_of(batch_sizes: Tensor | None, sizes: Sizes) -> list[int]:
    """The rows of each step of packed sequences; none of others."""
    if batch_sizes is None:
        return []
    counts = numbers_of(batch_sizes)
    falls = all(first >= second for first, second in pairwise(counts))
    if not (counts and falls) or counts[-1] < 1 or counts[0] != sizes.batch or sum(counts) != sizes.rows:
        shown = counts if len(counts) < 9 else f"[{counts[0]}, ..., {counts[-1]}]"
        raise RuntimeError(
            f"batch_sizes is {shown}: expected to fall from hx's batch, {sizes.batch}, to at least 1, and a sum of "
            f"{sizes.rows}, the rows of data"
        )
    return counts


def by_steps(tensor: Tensor, batch_sizes: Tensor | None, options: Options) -> Tensor:
    """(steps, batch, size), or (rows, size) of packed sequences, as a view."""
    return tensor.transpose(0, 1) if batch_sizes is None and options.batch_first else tensor


def params_of(params: Sequence[Tensor], options: Options) -> list[Sequence[Tensor]]:
    """The parameters of each direction of each layer."""
    each = len(params) // options.parts
    return [params[part * each : (part + 1) * each] for part in range(options.parts)]


def kept_size(sizes: Sizes, options: Options) -> int:
    """Numbers that forward leaves for backward."""
    of_part = KEPT_GATES[options.mode] * sizes.hidden + (options.states - 1) * sizes.hidden
    between = (options.layers - 1) * options.directions * sizes.size
    return sizes.rows * (options.parts * of_part + between)


class Kept(NamedTuple):
    """What forward leaves for backward.

    Attributes:
        gates: of each direction of each layer (rows, kept gates, hidden).
        cells: likewise (rows, hidden), of an LSTM; None of others.
        outputs: of each layer but the last (rows, directions * size).
    """

    gates: list[Tensor]
    cells: list[Tensor | None]
    outputs: list[Tensor]


def kept_of(kept: Tensor, sizes: Sizes, options: Options) -> Kept:
    """The parts of one tensor of `kept_size` numbers, as views."""
    count, width = KEPT_GATES[options.mode], options.directions * sizes.size
    gates, cells, outputs, at = [], [], [], 0
    for _ in range(options.parts):
        gates.append(kept[at : at + sizes.rows * count * sizes.hidden].view(sizes.rows, count, sizes.hidden))
        at += sizes.rows * count * sizes.hidden
        if options.states == 1:
            cells.append(None)
            continue
        cells.append(kept[at : at + sizes.rows * sizes.hidden].view(sizes.rows, sizes.hidden))
        at += sizes.rows * sizes.hidden
    for _ in range(options.layers - 1):
        outputs.append(kept[at : at + sizes.rows * width].view(sizes.rows, width))
        at += sizes.rows * width
    return Kept(gates, cells, outputs)


class Drawing(NamedTuple):
    """What a network is asked to draw.

    Attributes:
        tokens: the prompt, int64 (T,).
        states: before it, of all layers.
        embedding: (vocabulary, inputs).
        params: of all layers.
        head: its weight and, if it has one, its bias.
        key: of the draws.
        position: of the first draw.
        length: tokens to draw.
        temperature, top_k, top_p: as in `Draw`.
        mode: of `MODES`, by its code.
        layers: their number.
        has_biases: whether each layer has two.
        eps: added to the variances of a normalized LSTM.
        weights: how they are kept, by its code.
    """

    tokens: Tensor
    states: Sequence[Tensor]
    embedding: Tensor
    params: Sequence[Tensor]
    head: Sequence[Tensor]
    key: Tensor
    position: int
    length: int
    temperature: float
    top_k: int
    top_p: float
    mode: int
    layers: int
    has_biases: bool
    eps: float
    weights: int

    @property
    def options(self) -> Options:
        """Those of the network."""
        return Options(self.mode, self.layers, False, self.has_biases, False, self.eps)
