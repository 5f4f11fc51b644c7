"""The kinds of calls that are measured, with the work that each does, and the case: a row of the table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from aigc_fast.ops.examples import Example

FORWARD, TRAINING = "forward", "training"
FLOAT32, BFLOAT16, FLOAT64 = "float32", "bfloat16", "float64"
# How a decoder's weights are kept.
INT8, INT4 = "int8", "int4"
_ITEM = {FLOAT32: 4, BFLOAT16: 2, FLOAT64: 8}
# How many times as much training takes as forward: of attention, what backward computes again too.
_TRAINING, _TRAINING_OF_ATTENTION = 3.0, 3.5


@runtime_checkable
class Counted(Protocol):
    """A call whose work is known."""

    def operations(self) -> float:
        """Floating-point operations of forward."""

    def elements(self) -> float:
        """Numbers that forward reads or writes, each once."""


@dataclass(frozen=True)
class Convolution:
    """A convolution, or a transposed one, of `spatial` dimensions.

    Attributes:
        batch: N.
        inputs: channels.
        outputs: channels.
        spatial: of the input.
        kernel: in every dimension, as all that follow.
    """

    batch: int
    inputs: int
    outputs: int
    spatial: tuple[int, ...]
    kernel: int
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    groups: int = 1
    dilation: int = 1
    transposed: bool = True

    def outer(self, size: int) -> int:
        """The output's length along a dimension of the input's."""
        reach = self.dilation * (self.kernel - 1)
        if self.transposed:
            return (size - 1) * self.stride - 2 * self.padding + reach + self.output_padding + 1
        return (size + 2 * self.padding - reach - 1) // self.stride + 1

    def operations(self) -> int:
        """Floating-point operations of forward: products whose place lies inside, each with its sum."""
        products = 1
        for size in self.spatial:
            coarse, fine = (size, self.outer(size)) if self.transposed else (self.outer(size), size)
            places = (
                i * self.stride - self.padding + j * self.dilation for i in range(coarse) for j in range(self.kernel)
            )
            products *= sum(0 <= place < fine for place in places)
        return 2 * self.batch * self.inputs * self.outputs // self.groups * products

    def elements(self) -> int:
        """Numbers that forward reads or writes, each once."""
        kernel = self.inputs * self.outputs // self.groups * self.kernel ** len(self.spatial)
        output = self.batch * self.outputs * math.prod(map(self.outer, self.spatial))
        return self.batch * self.inputs * math.prod(self.spatial) + kernel + output


@dataclass(frozen=True)
class Attention:
    """Attention of `heads` queries' heads, and `shared` of keys and values.

    Attributes:
        kind: "full", "causal", "padded" (keys of each of the batch end earlier), "window" (causal, 256 keys) or
            "dropout" (causal, of 0.1).
    """

    batch: int
    heads: int
    shared: int
    queries: int
    keys: int
    size: int
    kind: str = "causal"

    def seen(self) -> float:
        """Keys that a query sees, on the average."""
        if self.kind in ("causal", "dropout"):
            return self.keys / 2
        return {"window": 256, "padded": 0.625 * self.keys}.get(self.kind, self.keys)

    def operations(self) -> float:
        """Floating-point operations of forward."""
        return 4 * self.batch * self.heads * self.queries * self.seen() * self.size

    def elements(self) -> int:
        """Numbers that forward reads or writes, each once."""
        return 2 * self.batch * self.size * (self.heads * self.queries + self.shared * self.keys)


@dataclass(frozen=True)
class Linear:
    """Rows through a linear layer and the activation that follows, as `linear` takes it."""

    rows: int
    inputs: int
    outputs: int
    activation: str | None = None

    def operations(self) -> int:
        """Floating-point operations of forward."""
        return 2 * self.rows * self.inputs * self.outputs


@dataclass(frozen=True)
class Norm:
    """A norm and the activation that follows.

    Attributes:
        function: "group_norm", "instance_norm" or "layer_norm".
        groups: of channels, for the first of them.
        activation: as the functions take it.
    """

    function: str
    sizes: tuple[int, ...]
    groups: int = 1
    activation: str | None = None


@dataclass(frozen=True)
class Recursion:
    """An autoregression of some order; `varying` where each step has its own coefficients."""

    batch: int
    length: int
    order: int
    varying: bool = False

    def operations(self) -> int:
        """Floating-point operations of forward."""
        return 2 * self.batch * self.length * self.order

    def elements(self) -> int:
        """Numbers that forward reads or writes, each once."""
        samples = self.batch * self.length
        return 2 * samples + (samples if self.varying else 1) * self.order


@dataclass(frozen=True)
class Sequences:
    """Sequences through a recurrent network, whose inputs are as many as its hidden units.

    Attributes:
        cell: "RNN", "LSTM", "GRU" or "LayerNormLSTM".
        packed: whether the sequences have lengths from 1 to `steps`.
    """

    cell: str
    batch: int
    steps: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False

    def lengths(self) -> list[int]:
        """Of the sequences, the longest first."""
        if not self.packed:
            return [self.steps] * self.batch
        return [max(1, round(self.steps * (self.batch - i) / self.batch)) for i in range(self.batch)]

    def operations(self) -> int:
        """Floating-point operations of forward, but for the gates."""
        return 2 * sum(self.lengths()) * self._weights()

    def elements(self) -> int:
        """Numbers that forward reads or writes, each once; weights that are read at every step, once."""
        return sum(self.lengths()) * self.hidden * (2 + self.bidirectional) + self._weights()

    def _weights(self) -> int:
        gates, directions = {"RNN": 1, "GRU": 3}.get(self.cell, 4), 1 + self.bidirectional
        depth = 2 * self.hidden + (self.layers - 1) * (directions + 1) * self.hidden
        return directions * gates * self.hidden * depth


@dataclass(frozen=True)
class Sampled:
    """Characters that a recurrent network draws, one after another."""

    cell: str
    hidden: int
    length: int


@dataclass(frozen=True)
class Decoder:
    """A transformer that generates, of random weights.

    Attributes:
        family: "gpt2", "llama", or "smollm2": SmolLM2-135M-Instruct, its own weights where the package is installed.
        units: of the inner part.
        context: positions.
    """

    family: str
    hidden: int = 0
    layers: int = 0
    heads: int = 0
    kv_heads: int = 0
    units: int = 0
    vocabulary: int = 0
    context: int = 0


@dataclass(frozen=True)
class Decoded:
    """Tokens that a decoder generates.

    Attributes:
        prompt: tokens before them.
        new: how many; of 1, it is the prompt that takes the time.
        options: of `generate`.
        extra: "processor" or "streamer": one of the user's own, in Python.
        against: what of ours another way of ours is compared with: "one row", "native loop", "int8" or "loading".
    """

    decoder: Decoder
    prompt: int
    new: int
    batch: int = 1
    options: tuple[tuple[str, object], ...] = ()
    extra: str | None = None
    against: str | None = None


@dataclass(frozen=True)
class Shape:
    """A tensor's shape, and a probability for dropout."""

    sizes: tuple[int, ...]
    probability: float = 0.0

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class WholeModel:
    """A model of `aigc_fast.bench.stock` or `decoders`, or a `VideoRNN`, and what is done with it: "step", "penalised
    step", "generate" or "decode"."""

    model: str
    work: str
    batch: int = 64


@dataclass(frozen=True)
class Answering:
    """An encoder-decoder on sources and targets of various lengths.

    Attributes:
        work: "step" of training, "greedy" or "beams": answers of the longest target's length.
        batch: pairs, or sources.
        source: tokens of the longest source; the shortest has an eighth of it.
        target: likewise.
        size: of a token's vector.
        layers: of the encoder, and of the decoder.
        vocabulary: tokens.
        beams: how many.
        dropout: the share of elements that training drops.
    """

    work: str
    batch: int
    source: int = 64
    target: int = 64
    size: int = 256
    layers: int = 4
    vocabulary: int = 4096
    beams: int = 4
    dropout: float = 0.1

    def lengths(self, longest: int) -> list[int]:
        """Of sources or targets, evenly from the longest to an eighth of it."""
        least = max(1, longest // 8)
        return [round(longest - (longest - least) * i / max(1, self.batch - 1)) for i in range(self.batch)]


Call = (
    Convolution
    | Attention
    | Linear
    | Norm
    | Recursion
    | Sequences
    | Sampled
    | Decoded
    | Shape
    | WholeModel
    | Answering
    | Example
)


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        op: the room, "models" for whole models, "examples" for the typical call of each public function, or
            "adversarial" for what nobody tunes for.
        name: of the row, in words.
        call: what is called.
        dtype: a name of torch's.
        mode: forward, or training: forward and backward.
        in_readme: whether the README shows it; what we lose is shown in any case.
    """

    op: str
    name: str
    call: Call = field(repr=False)
    dtype: str = FLOAT32
    mode: str = FORWARD
    in_readme: bool = False

    @property
    def label(self) -> str:
        """Op, name, dtype and mode, which no other case shares."""
        return label(self.op, self.name, self.dtype, self.mode)

    @property
    def operations(self) -> float | None:
        """Floating-point operations, with those of the gradients in training; None where nobody counts them."""
        return self._as_often(self.call.operations()) if isinstance(self.call, Counted) else None

    @property
    def nbytes(self) -> float | None:
        """Bytes that are read or written at least; None where nobody counts them."""
        return self._as_often(self.call.elements() * _ITEM[self.dtype]) if isinstance(self.call, Counted) else None

    def _as_often(self, amount: float) -> float:
        if self.mode != TRAINING:
            return amount
        return amount * (_TRAINING_OF_ATTENTION if isinstance(self.call, Attention) else _TRAINING)


def label(op: str, name: str, dtype: str, mode: str) -> str:
    """What a case and its row are called."""
    return f"{op} {name}, {dtype}, {mode}"
