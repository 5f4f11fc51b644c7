"""The native engine: a decoder's weights, packed once, and the sequences that go through it, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.decode.spec import Layer, Linear, Spec
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import MANY_USES, fingerprint
from aigc_fast.runtime.memory import footprint, lasting
from aigc_fast.runtime.weights import CODES as WEIGHT_CODES

_NORMS, _ACTIVATIONS = ("LAYER_NORM", "RMS_NORM"), ("GELU", "GELU_TANH", "SILU", "RELU")
_CODES = dict(zip(_NORMS, native.codes("decode_norms", *_NORMS), strict=True)) | dict(
    zip(_ACTIVATIONS, native.codes("decode_activations", *_ACTIVATIONS), strict=True)
)
_FINE = native.codes("decode_refusals", "NONE")[0]
# Of the bytes of float32 weights.
_SHARES = {"fp32": 1.0, "bf16": 1 / 2, "int8": 1 / 4, "int4": 1 / 6}
_TAKEN = torch.float32, torch.bfloat16
# Tokens of a prompt that go through the layers together: enough for the products to be as fast as they get, and few
# enough that an interrupt is heard soon.
MOST_TOKENS = 1024
# Sequences whose next tokens are found without most of the head.
MOST_GREEDY = 8


class Stamp(NamedTuple):
    """What a parameter looked like when it was packed: its place, its version and a digest of its elements."""

    address: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    version: int
    digest: int

    @classmethod
    def of(cls, tensor: Tensor, whole: bool) -> Stamp:
        """Of all elements, or of a few cache lines in every page."""
        version = 0 if tensor.is_inference() else tensor._version
        dense = tensor if tensor.is_contiguous() else tensor.t() if tensor.t().is_contiguous() else tensor.contiguous()
        digest = fingerprint(dense, MANY_USES if whole else 1)
        return cls(tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), version, digest)


def default_weights(spec: Spec) -> str:
    """How weights are kept when nobody says it: as they are, where the engine has that."""
    return "bf16" if spec.embedding.dtype == torch.bfloat16 else "fp32"


class Engine:
    """A decoder's packed weights. They don't follow the parameters: `is_current` tells whether these have changed.

    Args:
        spec: the decoder.
        weights: "fp32", "bf16", "int8" or "int4", whose head is int8.
    """

    def __init__(self, spec: Spec, weights: str) -> None:
        self.weights, self.level = weights, native.level()
        self.vocabulary, self.embedded = spec.head.weight.shape[0], spec.embedding.shape[0]
        self.layers, self.kv_heads, self.head_size = len(spec.layers), spec.kv_heads, spec.head_size
        self._stamps = {whole: _stamps(spec, whole) for whole in (False, True)}
        self._kernels = native.kernels()
        self._vectors: list[Tensor | None] = []
        self._addresses: list[int] = []
        self._packed = self._pack(spec)
        self._handle = self._create(spec)
        self.screen: Screen | None = None

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return footprint(self._packed.nbytes) + (0 if self.screen is None else self.screen.nbytes)

    def is_current(self, spec: Spec, weights: str, steps: int) -> bool:
        """Whether it still is what would be made of these.

        Args:
            spec, weights: as they are now.
            steps: that are about to be made. All elements are looked at before many of them, some before few.
        """
        whole = steps * _SHARES[weights] >= MANY_USES
        return (self.weights, self.level) == (weights, native.level()) and self._stamps[whole] == _stamps(spec, whole)

    def _pack(self, spec: Spec) -> Tensor:
        parts = [part for layer in spec.layers for part in _matrices(layer)] + [(spec.head,)]
        kinds = [WEIGHT_CODES[self.weights]] * (len(parts) - 1) + [
            WEIGHT_CODES["int8" if self.weights == "int4" else self.weights]
        ]
        sizes = [
            self._kernels.decode_packed_size(kind, part[0].weight.shape[1], sum(p.weight.shape[0] for p in part))
            if part
            else 0
            for kind, part in zip(kinds, parts, strict=True)
        ]
        # Panels begin at cache lines.
        packed = lasting(sum(-(-size // 64) * 64 for size in sizes) + 64)
        address = -(-packed.data_ptr() // 64) * 64
        for kind, part, size in zip(kinds, parts, sizes, strict=True):
            self._addresses.append(address if part else 0)
            if part:
                self._kernels.decode_pack([_readable(linear.weight) for linear in part], kind, address)
            address += -(-size // 64) * 64
        return packed

    def _create(self, spec: Spec) -> object:
        self._vectors = [
            _readable(spec.embedding),
            None if spec.positions is None else _readable(spec.positions),
            _vector(spec.frequencies),
            torch.tensor([layer.scale for layer in spec.layers], dtype=torch.float32),
            *map(_vector, spec.norm),
        ]
        for layer in spec.layers:
            self._vectors += map(_vector, (*layer.before_attention, *layer.before_units))
            self._vectors += map(_bias, _matrices(layer))
        self._vectors.append(_vector(spec.head.bias))
        numbers = [
            len(spec.layers),
            spec.embedding.shape[1],
            spec.heads,
            spec.kv_heads,
            spec.head_size,
            spec.layers[0].up.weight.shape[0],
            self.embedded,
            self.vocabulary,
            0 if spec.positions is None else spec.positions.shape[0],
            0 if spec.frequencies is None else 2 * spec.frequencies.shape[0],
            WEIGHT_CODES[self.weights],
            WEIGHT_CODES["int8" if self.weights == "int4" else self.weights],
            _CODES[spec.norm_kind],
            _CODES[spec.activation],
        ]
        return self._kernels.decode_create(numbers, spec.epsilon, spec.rotation_scale, self._vectors, self._addresses)

    def certify(self, spec: Spec) -> bool:
        """Whether `State.greedy` can do without most of the head, of which another form is packed at the first time.

        Args:
            spec: what the engine was made of.
        """
        if self.screen is None and self.weights == "fp32" and spec.head.bias is None:
            screen = Screen(self._kernels, self._handle, spec.head.weight)
            self.screen = screen if screen.bounds.isfinite().all() else None
        return self.screen is not None

    def begin(self, slots: int) -> State:
        """Sequences that have no tokens yet."""
        return State(self, self._kernels, self._handle, slots)


class Screen:
    """A head of float32 weights as int8, and how far that may be wrong.

    Attributes:
        packed: the head's int8 form.
        bounds: (2, columns), float32: of each column the norms of what int8 leaves out, and of the weights.
    """

    def __init__(self, kernels: object, decoder: object, weight: Tensor) -> None:
        code = WEIGHT_CODES["int8"]
        self.packed = lasting(kernels.decode_packed_size(code, weight.shape[1], weight.shape[0]))
        kernels.decode_pack([_readable(weight)], code, self.packed.data_ptr())
        self.bounds = torch.empty(2, kernels.decode_padded(weight.shape[0]))
        kernels.decode_bounds(decoder, self.packed.data_ptr(), self.bounds)

    @property
    def nbytes(self) -> int:
        return footprint(self.packed.nbytes) + self.bounds.nbytes


def _stamps(spec: Spec, whole: bool) -> list[Stamp]:
    tensors = {tensor.data_ptr(): tensor for tensor in spec.tensors()}
    return [Stamp.of(tensor, whole) for tensor in tensors.values()]


def _matrices(layer: Layer) -> tuple[tuple[Linear, ...], ...]:
    """What is packed as one each, in the kernel's order."""
    gate = () if layer.gate is None else (layer.gate,)
    return layer.projections, (layer.out,), (layer.up,), gate, (layer.down,)


def _readable(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype in _TAKEN else tensor.float()


def _vector(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().to(torch.float32, copy=True).contiguous()


def _bias(linears: tuple[Linear, ...]) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    zeros = [linear.weight.new_zeros(linear.weight.shape[0]) for linear in linears]
    return _vector(torch.cat([z if p.bias is None else p.bias for z, p in zip(zeros, linears, strict=True)]))


class State:
    """Sequences that grow together: keys and values of what each has seen.

    Attributes:
        engine: whose they are.
        slots: how many sequences.
        length: tokens that each has been given, hidden ones among them.
    """

    def __init__(self, engine: Engine, kernels: object, decoder: object, slots: int) -> None:
        self.engine, self.slots, self.length = engine, slots, 0
        self._kernels, self._decoder = kernels, decoder
        self._handle = kernels.decode_begin(decoder, slots)
        self._step = torch.empty(5, slots, dtype=torch.int64)
        self._step[2] = self._all = torch.arange(slots)
        self._step[4] = 1

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self._kernels.decode_bytes(self._handle)

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The logits after one more token of each sequence.

        Args:
            ids: (slots,), int64.
            positions: (slots,) or (1,), int64.

        Returns:
            (slots, vocabulary), float32.
        """
        tokens = self._step
        tokens[0], tokens[1] = ids, positions
        tokens[3].fill_(self.length)
        logits = torch.empty(self.slots, self.engine.vocabulary)
        self._forward(tokens, self._all, logits)
        self.length += 1
        return logits

    def greedy(self, ids: Tensor, positions: Tensor, banned: Tensor) -> Tensor | None:
        """The most likely tokens after one more token of each sequence, at most `MOST_GREEDY` of them.

        Args:
            ids: (slots,), int64.
            positions: (slots,) or (1,), int64.
            banned: (count,), int64: tokens that are out of question.

        Returns:
            (slots,), int64: those that `step` and `argmax` find; None, with no token taken, where logits may not be
            finite.
        """
        tokens, screen = self._step, self.engine.screen
        tokens[0], tokens[1] = ids, positions
        tokens[3].fill_(self.length)
        found = torch.empty(self.slots, dtype=torch.int64)
        given = self._decoder, self._handle, tokens, self._all, screen.packed.data_ptr(), screen.bounds, banned, found
        self._check(self._kernels.decode_greedy(*given))
        if (found < 0).any():
            self.crop(self.length)
            return None
        self.length += 1
        return found

    def extend(self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int) -> Tensor:
        """The logits after some more tokens of each sequence.

        Args:
            ids: (slots, count), int64.
            positions: (slots, count), int64.
            visible: (slots, count), bool: which of them are seen by themselves and later ones; None for all.
            keep: of how many last tokens the logits are wanted.

        Returns:
            (slots, keep, vocabulary), float32.
        """
        count = ids.shape[1]
        if count == 1 and keep == 1 and visible is None:
            return self.step(ids[:, 0], positions[:, 0]).unsqueeze(1)
        kinds = torch.stack([ids, positions, torch.ones_like(ids) if visible is None else visible.long()])
        parents = self._parents(kinds)
        own = self._all if parents is None else parents.unique()
        kinds = kinds[:, own]
        # Hidden tokens are of no use to others.
        computed = kinds[2] > 0
        computed[:, count - keep :] = True
        slots, columns = computed.nonzero(as_tuple=True)
        tokens = torch.stack([*kinds[:2, slots, columns], own[slots], columns + self.length, kinds[2, slots, columns]])
        places = (columns >= count - keep).nonzero().view(-1)
        logits = torch.empty(own.shape[0], keep, self.engine.vocabulary)
        self._extend(tokens, places, logits.view(-1, self.engine.vocabulary))
        self.length += count
        if parents is None:
            return logits
        self.reorder(parents)
        return logits[torch.searchsorted(own, parents)]

    def _parents(self, kinds: Tensor) -> Tensor | None:
        """For each sequence the first of those alike that it stands among, as beams do at first; None of all alone."""
        if self.length or self.slots == 1:
            return None
        differs = (kinds[:, 1:] != kinds[:, :-1]).any(-1).any(0)
        if differs.all():
            return None
        first = torch.cat([differs.new_ones(1), differs])
        return self._all[first][first.cumsum(0) - 1]

    def _extend(self, tokens: Tensor, places: Tensor, logits: Tensor) -> None:
        done = 0
        for first in range(0, tokens.shape[1], MOST_TOKENS):
            part = tokens[:, first : first + MOST_TOKENS].contiguous()
            inside = places[(places >= first) & (places < first + MOST_TOKENS)] - first
            self._forward(part, inside, logits[done : done + inside.shape[0]])
            done += inside.shape[0]

    def _forward(self, tokens: Tensor, places: Tensor, logits: Tensor) -> None:
        self._check(self._kernels.decode_forward(self._decoder, self._handle, tokens, places, logits.data_ptr()))

    @staticmethod
    def _check(refusal: int) -> None:
        if refusal != _FINE:
            raise IndexError("index out of range in self")  # as an embedding says it

    def reorder(self, parents: Tensor) -> None:
        """Lets every sequence go on from what another one has seen.

        Args:
            parents: (slots,), int64.
        """
        self._kernels.decode_reorder(self._handle, parents.long().contiguous())

    def crop(self, length: int) -> None:
        """Forgets all but the first tokens of each sequence."""
        self._kernels.decode_crop(self._handle, length)
        self.length = length

    def export(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (slots, kv_heads, length, head_size), zeros for what is hidden."""
        shape = self.slots, self.engine.kv_heads, self.length, self.engine.head_size
        found = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(self.engine.layers)]
        for layer, pair in enumerate(found):
            self._kernels.decode_export(self._handle, layer, *pair)
        return found

    def load(self, layers: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None) -> None:
        """Begins with keys and values that another computed.

        Args:
            layers: of each layer (slots, kv_heads, length, head_size), twice.
            visible: (slots, length), bool; None for all.
        """
        length = layers[0][0].shape[2]
        visible = torch.ones(self.slots, length, dtype=torch.bool) if visible is None else visible
        self._kernels.decode_append(self._handle, torch.stack(visible.nonzero(as_tuple=True)))
        for layer, pair in enumerate(layers):
            self._kernels.decode_import(self._handle, layer, *(tensor.detach().float().contiguous() for tensor in pair))
        self.length = length
