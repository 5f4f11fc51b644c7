"""The native engine: a decoder's weights, packed once, and the sequences that go through it, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec
from aigc_fast.runtime import native
from aigc_fast.runtime.kept import MANY_USES, fingerprint
from aigc_fast.runtime.memory import footprint, lasting
from aigc_fast.runtime.weights import CODES as WEIGHT_CODES

_NAMES = {
    "decode_norms": ("LAYER_NORM", "RMS_NORM"),
    "decode_activations": ("GELU", "GELU_TANH", "SILU", "RELU"),
    "decode_orders": ("BEFORE", "AFTER", "PARALLEL"),
}
_CODES = {
    name: code for kind, names in _NAMES.items() for name, code in zip(names, native.codes(kind, *names), strict=True)
}
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
        digest = fingerprint(dense, MANY_USES if whole else 1) if dense.is_cpu else digest_on_device(dense)
        return cls(tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), version, digest)


def digest_on_device(tensor: Tensor) -> int:
    """A number that changes with the elements; waits for the device.

    Args:
        tensor: of 16 or 32 bits, its elements without gaps.
    """
    words = tensor.detach().reshape(-1).view(torch.int32 if tensor.itemsize == 4 else torch.int16)
    parts = torch.stack([words[::step].sum(dtype=torch.int64) * factor for step, factor in ((1, 1), (3, 31), (7, 127))])
    return int(parts.sum())


def default_weights(spec: Spec) -> str:
    """How weights are kept when nobody says it: as they are, where the engine has that."""
    return "bf16" if spec.embedding.dtype == torch.bfloat16 else "fp32"


class Engine:
    """A decoder's weights, packed on the CPU. They don't follow the parameters: `is_current` tells of changes.

    Args:
        spec: the decoder.
        weights: "fp32", "bf16", "int8" or "int4"; of the last the head is int8, and of deep decoders the first layers.
        release: called with each tensor that was read, each time, so that its memory may be given back in between.

    Raises:
        ValueError: when a spec contradicts itself.

    Example:
        A decoder that attends to what an encoder gave, (rows, source, depth), five beams for each row:

        >>> engine = engine_of(model, model.spec(), "int8", steps=100)
        >>> memory = engine.remember(encoded, lengths)
        >>> state = engine.begin(5 * len(encoded), memory)  # or engine.begin(slots, memory, row_of_each_slot)
        >>> logits = state.step(ids, positions)  # ids (slots,), positions (1,): logits (slots, vocabulary)
        >>> state.reorder(parents)  # beams that go on from others
        >>> logits = state.step(more, positions + 1)
    """

    backend = "cpu"

    def __init__(self, spec: Spec, weights: str, release: Callable[[Tensor], None] | None = None) -> None:
        _check(spec)
        release = release or (lambda tensor: None)
        self.weights, self.level, self.device = weights, native.level(), spec.embedding.device
        self.vocabulary, self.embedded = spec.head.weight.shape[0], spec.embedding.shape[0]
        self.layers, self.kv_heads, self.head_size = len(spec.layers), spec.kv_heads, spec.head_size
        self.memory_depth = _memory_depth(spec)
        self._stamps = {whole: _stamps(spec, whole, release) for whole in (False, True)}
        self._kernels = native.kernels()
        self._vectors: list[Tensor | None] = []
        self._addresses: list[int] = []
        self._packed = self._pack(spec, release)
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

    def _kept_as(self, index: int) -> int:
        """How a layer's weights are kept, or, after the last one, the head's."""
        return self._kernels.decode_kept_as(WEIGHT_CODES[self.weights], index, self.layers)

    def _pack(self, spec: Spec, release: Callable[[Tensor], None]) -> Tensor:
        parts, kinds = [], []
        for index, matrices in enumerate((*map(matrices_of, spec.layers), ((spec.head,),))):
            parts += matrices
            kinds += [self._kept_as(index)] * len(matrices)
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
                self._kernels.decode_pack([readable(linear.weight) for linear in part], kind, address)
                for linear in part:
                    release(linear.weight)
            address += -(-size // 64) * 64
        return packed

    def _create(self, spec: Spec) -> object:
        self._vectors = [
            readable(spec.embedding),
            None if spec.positions is None else readable(spec.positions),
            vector(spec.frequencies),
            torch.tensor([scales_of(layer) for layer in spec.layers], dtype=torch.float32),
            *norm_vectors(spec.norm),
        ]
        for layer in spec.layers:
            cross_norm = None if layer.cross is None else layer.cross.norm
            self._vectors += (
                *norm_vectors(layer.attention_norm),
                *norm_vectors(layer.units_norm),
                *norm_vectors(cross_norm),
            )
            self._vectors += map(bias_of, matrices_of(layer))
        self._vectors.append(vector(spec.head.bias))
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
            self.memory_depth,
            WEIGHT_CODES[self.weights],
            self._kept_as(self.layers),
            _CODES[spec.norm_kind],
            _CODES[spec.activation],
            _CODES[spec.order],
            *(layer.window or 0 for layer in spec.layers),
        ]
        scales = spec.epsilon, spec.rotation_scale, spec.embedding_scale
        return self._kernels.decode_create(numbers, *scales, self._vectors, self._addresses)

    def certify(self, spec: Spec) -> bool:
        """Whether `State.greedy` can do without most of the head, of which another form is packed at the first time.

        Args:
            spec: what the engine was made of.
        """
        if self.screen is None and self.weights == "fp32" and spec.head.bias is None:
            screen = Screen(self._kernels, self._handle, spec.head.weight)
            self.screen = screen if screen.bounds.isfinite().all() else None
        return self.screen is not None

    def remember(self, encoded: Tensor, lengths: Tensor | None = None) -> Memory:
        """What an encoder gave, as the keys and values of all layers, made once for all steps.

        Args:
            encoded: (rows, length, depth), of a floating dtype, on the engine's device.
            lengths: (rows,), integers on the CPU: how many tokens of each row there are, the first ones; None for all.
                A sequence that attends to none gets zeros.

        Raises:
            ValueError: when the decoder attends to no memory, or on shapes that do not fit.
            TypeError: for dtypes that do not.
        """
        return Memory(self, self._kernels, self._handle, encoded, lengths)

    def begin(self, slots: int, memory: Memory | None = None, sources: Tensor | None = None) -> State:
        """Sequences that have no tokens yet.

        Args:
            slots: how many.
            memory: of this engine, where its decoder attends to one.
            sources: (slots,), integers on the CPU: the memory's row that each of them attends to; None for as many of
                each row, one row after the other.

        Raises:
            ValueError: when a memory is missing, or there is none to attend to, or sources are out of range.
        """
        self._check_memory(memory)
        state = State(self, self._kernels, self._handle, slots)
        if memory is not None:
            state.attend_to(memory, sources)
        return state

    def _check_memory(self, memory: Memory | None) -> None:
        if (memory is None) != (self.memory_depth == 0):
            expected = "a decoder that attends to one" if memory is not None else "what `remember` gave"
            raise ValueError(f"memory={memory}: expected {expected}")
        if memory is not None and memory.engine is not self:
            raise ValueError("memory: expected one of this engine")


class Screen:
    """A head of float32 weights as int8, and how far that may be wrong.

    Attributes:
        packed: the head's int8 form.
        bounds: (2, columns), float32: of each column the norms of what int8 leaves out, and of the weights.
    """

    def __init__(self, kernels: object, decoder: object, weight: Tensor) -> None:
        code = WEIGHT_CODES["int8"]
        self.packed = lasting(kernels.decode_packed_size(code, weight.shape[1], weight.shape[0]))
        kernels.decode_pack([readable(weight)], code, self.packed.data_ptr())
        self.bounds = torch.empty(2, kernels.decode_padded(weight.shape[0]))
        kernels.decode_bounds(decoder, self.packed.data_ptr(), self.bounds)

    @property
    def nbytes(self) -> int:
        return footprint(self.packed.nbytes) + self.bounds.nbytes


class Memory:
    """Rows that sequences attend to: the keys and values of all layers.

    Attributes:
        engine: whose they are.
        rows: how many.
        handle: the native memory.
    """

    def __init__(
        self, engine: Engine, kernels: object, decoder: object, encoded: Tensor, lengths: Tensor | None
    ) -> None:
        lengths = lengths_of(encoded, lengths, engine.memory_depth, engine.device)
        self.engine, self.rows = engine, encoded.shape[0]
        self._kernels = kernels
        self.handle = kernels.decode_memory(decoder, lengths)
        present = torch.arange(encoded.shape[1]) < lengths[:, None]
        tokens = encoded.detach()[present].float()
        for first in range(0, tokens.shape[0], MOST_TOKENS):
            kernels.decode_project(decoder, self.handle, tokens[first : first + MOST_TOKENS], first)

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self._kernels.decode_memory_bytes(self.handle)


def lengths_of(encoded: Tensor, lengths: Tensor | None, depth: int, device: torch.device) -> Tensor:
    """How many tokens there are of each row of what an encoder gave, (rows,), int64; see `Engine.remember`."""
    if not depth:
        raise ValueError("the decoder attends to no memory: expected a spec whose layers have `cross`")
    if encoded.dim() != 3 or encoded.shape[2] != depth:
        raise ValueError(f"encoded: expected (rows, length, {depth}), got {tuple(encoded.shape)}")
    if not encoded.is_floating_point() or encoded.device != device:
        expected = f"a floating dtype on {'the CPU' if device.type == 'cpu' else device}"
        raise TypeError(f"encoded: expected {expected}, got {encoded.dtype} on {encoded.device}")
    lengths = torch.full(encoded.shape[:1], encoded.shape[1]) if lengths is None else lengths
    _check_indices("lengths", lengths, encoded.shape[0], encoded.shape[1])
    return lengths.long().contiguous()


def sources_of(memory: Memory, slots: int, sources: Tensor | None) -> Tensor:
    """The memory's row that each sequence attends to, (slots,), int64; see `Engine.begin`."""
    if sources is None:
        if not memory.rows or slots % memory.rows:
            raise ValueError(f"slots={slots}: expected a multiple of the memory's {memory.rows} rows")
        return torch.arange(memory.rows).repeat_interleave(slots // memory.rows)
    _check_indices("sources", sources, slots, memory.rows - 1)
    return sources.long().contiguous()


def _check_indices(name: str, given: Tensor, count: int, greatest: int) -> None:
    if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool or not given.is_cpu:
        raise TypeError(f"{name}: expected integers on the CPU, got {given.dtype} on {given.device}")
    if given.shape != (count,):
        raise ValueError(f"{name}: expected ({count},), got {tuple(given.shape)}")
    if given.numel() and (given.min() < 0 or given.max() > greatest):
        raise ValueError(f"{name}: expected 0 to {greatest}, got {given.min()} to {given.max()}")


def _check(spec: Spec) -> None:
    depths = {None if each.cross is None else each.cross.projections[0].weight.shape[1] for each in spec.layers}
    if len(depths) != 1:
        raise ValueError("layers: expected attention to one memory in all of them or in none")
    if spec.order == "PARALLEL" and depths != {None}:
        raise ValueError("order='PARALLEL': expected no attention to a memory")


def _memory_depth(spec: Spec) -> int:
    """Of what the decoder attends to besides its tokens; 0 of nothing."""
    cross = spec.layers[0].cross
    return 0 if cross is None else cross.projections[0].weight.shape[1]


def _stamps(spec: Spec, whole: bool, release: Callable[[Tensor], None] = lambda tensor: None) -> list[Stamp]:
    # Parts of a parameter are checked together.
    parameters = (tensor if tensor._base is None else tensor._base for tensor in spec.tensors())
    tensors = {tensor.data_ptr(): tensor for tensor in parameters}
    found = []
    for tensor in tensors.values():
        found.append(Stamp.of(tensor, whole))
        release(tensor)
    return found


def scales_of(layer: Layer) -> tuple[float, float]:
    """Of the scores, to tokens and to a memory."""
    return layer.scale, 0.0 if layer.cross is None else layer.cross.scale


def norm_vectors(norm: Norm | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias as kernels read them."""
    return (None, None) if norm is None else (vector(norm.weight), vector(norm.bias))


def matrices_of(layer: Layer) -> tuple[tuple[Linear, ...], ...]:
    """What is packed as one each, in the kernel's order."""
    gate = () if layer.gate is None else (layer.gate,)
    cross = ((), (), ()) if layer.cross is None else ((layer.cross.query,), layer.cross.projections, (layer.cross.out,))
    return layer.projections, (layer.out,), (layer.up,), gate, (layer.down,), *cross


def readable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, in a dtype that kernels read."""
    tensor = tensor.detach()
    return tensor if tensor.dtype in _TAKEN else tensor.float()


def vector(tensor: Tensor | None) -> Tensor | None:
    """A copy that kernels read."""
    return None if tensor is None else tensor.detach().to(torch.float32, copy=True).contiguous()


def bias_of(linears: tuple[Linear, ...]) -> Tensor | None:
    """The biases of what is packed as one, zeros where one has none; None where none has."""
    if all(linear.bias is None for linear in linears):
        return None
    zeros = [linear.weight.new_zeros(linear.weight.shape[0]) for linear in linears]
    return vector(torch.cat([z if p.bias is None else p.bias for z, p in zip(zeros, linears, strict=True)]))


class State:
    """Sequences that grow together: keys and values of what each has seen.

    Attributes:
        engine: whose they are.
        slots: how many sequences.
        length: tokens that each has been given, hidden ones among them.
        memory: what they attend to besides their tokens, or None.
    """

    def __init__(self, engine: Engine, kernels: object, decoder: object, slots: int) -> None:
        self.engine, self.slots, self.length = engine, slots, 0
        self._kernels, self._decoder = kernels, decoder
        self._handle = kernels.decode_begin(decoder, slots)
        self.memory: Memory | None = None
        self._sources: Tensor | None = None
        self._step = torch.empty(5, slots, dtype=torch.int64)
        self._step[2] = self._all = torch.arange(slots)
        self._step[4] = 1

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self._kernels.decode_bytes(self._handle)

    def attend_to(self, memory: Memory, sources: Tensor | None) -> None:
        """Lets every sequence attend to a row of a memory; see `Engine.begin`."""
        self.memory, self._sources = memory, sources_of(memory, self.slots, sources)
        self._kernels.decode_attach(self._handle, memory.handle, self._sources)

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
        # No other token sees hidden tokens.
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
        if self._sources is not None:
            differs |= self._sources[1:] != self._sources[:-1]
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
        if self._sources is not None:
            self._sources = self._sources[parents]

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
