"""The engine on CUDA, csrc/cuda/decode.cu: a step is one captured graph; prompts go through PyTorch's own ops."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as TF
from torch import Tensor

from aigc_fast.ops.attention.cuda import MOST_SIZE, count_parts_of
from aigc_fast.ops.decode import reference
from aigc_fast.ops.decode.engine import (
    MOST_TOKENS,
    Engine,
    bias_of,
    lengths_of,
    matrices_of,
    norm_vectors,
    readable,
    scales_of,
    sources_of,
    vector,
)
from aigc_fast.ops.decode.packing import Packed, pack
from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec
from aigc_fast.runtime import devices, native
from aigc_fast.runtime.activations import CODES as ACTIVATIONS
from aigc_fast.runtime.devices import Reason, queue
from aigc_fast.runtime.dtypes import DTYPES
from aigc_fast.runtime.weights import WEIGHTS

# Tokens that there is room for at first.
LEAST_ROOM = 256
# Matrices of a layer that its steps read: all but what makes a memory's keys and values.
_OF_STEPS = 6


def unsupported(spec: Spec) -> Reason:
    """Why this engine cannot run a decoder, or None."""
    if spec.head_size > MOST_SIZE:
        return f"heads of {spec.head_size} numbers: the CUDA engine takes up to {MOST_SIZE}"
    tensors = (tensor for tensor in spec.tensors() if tensor is not spec.frequencies)
    return devices.cuda(torch.float32, *tensors) or native.cpu_reason()


class CudaEngine(Engine):
    """The same on CUDA; see `Engine`. Activations stay float32, whatever the weights are kept as.

    Example:
        >>> engine = CudaEngine(model.spec(), "int8")
        >>> state = engine.begin(len(ids))
        >>> logits = state.extend(ids, positions, None, 1)  # by PyTorch's ops
        >>> logits = state.step(logits[:, 0].argmax(-1), positions[:, -1] + 1)  # one graph
    """

    backend = "cuda"

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""
        return sum(matrix.nbytes for matrices in self._packed for matrix in matrices)

    def _pack(self, spec: Spec, release: Callable[[Tensor], None]) -> list[list[Packed]]:
        """Of each layer projections, out, up and down; of its attention to a memory query, out and projections; and the
        head."""
        packed = []
        for index, layer in enumerate(spec.layers):
            projections, out, up, gate, down, query, of_memory, out_of_memory = matrices_of(layer)
            packed.append([self._packed_as(index, part, release) for part in (projections, out)])
            packed[-1].append(self._packed_as(index, up, release) if not gate else self._both(index, gate, up, release))
            others = [down] if layer.cross is None else [down, query, out_of_memory, of_memory]
            packed[-1] += [self._packed_as(index, part, release) for part in others]
        return [*packed, [self._packed_as(self.layers, (spec.head,), release)]]

    def _packed_as(self, index: int, part: tuple[Linear, ...], release: Callable[[Tensor], None]) -> Packed:
        weight = torch.cat([linear.weight.detach() for linear in part])
        return self._rounded(index, weight, bias_of(part), part, release)

    def _both(
        self, index: int, gate: tuple[Linear, ...], up: tuple[Linear, ...], release: Callable[[Tensor], None]
    ) -> Packed:
        """A gate's outputs and those that it multiplies, in turn."""
        weight = torch.stack([linear.weight.detach() for linear in (*gate, *up)], 1).flatten(0, 1)
        biases = bias_of(gate + up)
        bias = None if biases is None else biases.view(2, -1).t().flatten()
        return self._rounded(index, weight, bias, gate + up, release)

    def _rounded(
        self,
        index: int,
        weight: Tensor,
        bias: Tensor | None,
        read: tuple[Linear, ...],
        release: Callable[[Tensor], None],
    ) -> Packed:
        found = pack(weight, WEIGHTS[self._kept_as(index)], bias)
        for linear in read:
            release(linear.weight)
        return found

    def _create(self, spec: Spec) -> object:
        """Keeps all but the matrices as a spec of its own, which prompts go through."""
        self.units, self.is_gated = spec.layers[0].up.weight.shape[0], spec.layers[0].gate is not None
        self.spec = spec._replace(
            embedding=readable(spec.embedding).contiguous(),
            positions=None if spec.positions is None else readable(spec.positions).contiguous(),
            frequencies=None if spec.frequencies is None else vector(spec.frequencies).to(self.device),
            layers=tuple(map(_without_matrices, spec.layers)),
            norm=None if spec.norm is None else _copied(spec.norm),
            head=None,
        )
        scales = [scale for layer in spec.layers for scale in scales_of(layer)]
        reals = spec.epsilon, spec.rotation_scale, spec.embedding_scale, *scales
        return native.cuda.decode_create(
            self._sizes(), self._addresses_in_order(), struct.pack(f"{len(reals)}d", *reals)
        )

    def _sizes(self) -> list[int]:
        of, positions, frequencies = self.spec, self.spec.positions, self.spec.frequencies
        return [
            self.layers,
            of.embedding.shape[1],
            of.heads,
            of.kv_heads,
            of.head_size,
            self.units,
            self.embedded,
            self.vocabulary,
            0 if positions is None else positions.shape[0],
            0 if frequencies is None else 2 * frequencies.shape[0],
            int(of.norm_kind == "LAYER_NORM"),
            ACTIVATIONS[of.activation.lower()],
            int(self.is_gated),
            int(of.order == "PARALLEL"),
            int(of.order == "AFTER"),
            int(self.memory_depth > 0),
            DTYPES[of.embedding.dtype],
            DTYPES[torch.float32 if positions is None else positions.dtype],
            *(self._kept_as(index) for index in range(self.layers + 1)),
            *(layer.window or 0 for layer in of.layers),
        ]

    def _addresses_in_order(self) -> list[int]:
        of = self.spec
        found = [*map(_address, (of.embedding, of.positions, of.frequencies)), *_addresses_of(of.norm)]
        for layer, matrices in zip(of.layers, self._packed[:-1], strict=True):
            norms = layer.attention_norm, layer.units_norm, *(() if layer.cross is None else (layer.cross.norm,))
            found += [address for norm in norms for address in _addresses_of(norm)]
            found += [address for matrix in matrices[:_OF_STEPS] for address in matrix.addresses]
        return [*found, *self._packed[-1][0].addresses]

    def layer(self, index: int) -> Layer:
        """A layer with its matrices as the kernels multiply by them, in float32."""
        projections, out, up, down, *others = (matrix.linear() for matrix in self._packed[index])
        gate, cross = None, self.spec.layers[index].cross
        if self.is_gated:
            gate, up = (Linear(up.weight[i::2], None if up.bias is None else up.bias[i::2]) for i in (0, 1))
        if cross is not None:
            query, out_of_memory, of_memory = others
            cross = cross._replace(query=query, projections=(of_memory,), out=out_of_memory)
        made = {"projections": (projections,), "out": out, "up": up, "gate": gate, "down": down, "cross": cross}
        return self.spec.layers[index]._replace(**made)

    def of_memory(self, index: int) -> Linear:
        """What makes keys and values of a memory in a layer, the same."""
        return self._packed[index][-1].linear()

    def head(self) -> Linear:
        """The head, the same."""
        return self._packed[-1][0].linear()

    def run(self, numbers: bytes) -> None:
        """Puts a step on the current stream; nothing is allocated, and nothing waits for it."""
        native.cuda.decode_step(self._handle, numbers, *queue(self.spec.embedding))

    def certify(self, spec: Spec) -> bool:
        """False: all of the head is read."""
        return False

    def remember(self, encoded: Tensor, lengths: Tensor | None = None) -> CudaMemory:
        """See `Engine.remember`."""
        return CudaMemory(self, encoded, lengths)

    def begin(self, slots: int, memory: CudaMemory | None = None, sources: Tensor | None = None) -> CudaState:
        """See `Engine.begin`."""
        self._check_memory(memory)
        return CudaState(self, slots, memory, None if memory is None else sources_of(memory, slots, sources))


def _copied(norm: Norm) -> Norm:
    return Norm(*norm_vectors(norm))


def _without_matrices(layer: Layer) -> Layer:
    norms = {name: _copied(getattr(layer, name)) for name in ("attention_norm", "units_norm")}
    cross = layer.cross and layer.cross._replace(norm=_copied(layer.cross.norm), query=None, projections=(), out=None)
    return layer._replace(projections=(), out=None, up=None, gate=None, down=None, cross=cross, **norms)


def _addresses_of(norm: Norm | None) -> tuple[int, int]:
    return (0, 0) if norm is None else (_address(norm.weight), _address(norm.bias))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class CudaMemory:
    """Rows that sequences attend to, on CUDA; see `Memory`.

    Attributes:
        engine: whose they are.
        rows: how many.
        kept: (layers, 2, rows, kv_heads, length, head_size), float32: keys and values, of nothing zeros.
        present: (rows, length), bool, which tokens there are; None for all.
    """

    @torch.no_grad()
    def __init__(self, engine: CudaEngine, encoded: Tensor, lengths: Tensor | None) -> None:
        of, device = engine.spec, engine.device
        lengths = lengths_of(encoded, lengths, engine.memory_depth, device)
        self.engine, (self.rows, length, _) = engine, encoded.shape
        is_full = bool((lengths == length).all())
        self.present = None if is_full else torch.arange(length, device=device) < lengths.to(device)[:, None]
        encoded = encoded.float()
        if self.present is not None:
            # What is not there may be anything, of which no weight makes nothing.
            encoded = encoded.where(self.present[:, :, None], 0.0)
        made = (reference.heads_of(encoded, (engine.of_memory(index),), of) for index in range(engine.layers))
        self.kept = torch.stack([torch.stack(heads.chunk(2, 1)) for heads in made])

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self.kept.nbytes


class CudaState:
    """Sequences that grow together, on CUDA; see `State`.

    What tells one step from the next lies on the device, so that a step is captured once and then replayed until there
    is no more room for tokens: there is twice as much then, and the next step is captured anew.

    Attributes:
        engine: whose they are.
        slots: how many sequences.
        length: tokens that each has been given, hidden ones among them.
        memory: what they attend to besides their tokens, or None.
        room: tokens that there is room for.
    """

    def __init__(self, engine: CudaEngine, slots: int, memory: CudaMemory | None, sources: Tensor | None) -> None:
        self.engine, self.slots, self.length, self.room = engine, slots, 0, 0
        self.memory, self._sources = memory, None if sources is None else sources.to(engine.device)
        of = engine.spec
        self._ids, self._positions = self._empty(slots, dtype=torch.int64), self._empty(slots, dtype=torch.int64)
        # Before and with the token of a step.
        self._lengths = torch.tensor([0, 1], device=engine.device)
        self._visible: Tensor | None = None
        # Whose token each sequence has in every place; of places that are to come, its own.
        self._whose = torch.arange(slots)[:, None].expand(slots, 0)
        self._cache = self._empty(engine.layers, 2, slots, of.kv_heads, 0, of.head_size)
        columns = (of.heads + 2 * of.kv_heads) * of.head_size
        self._x, self._logits = self._empty(slots, of.embedding.shape[1]), self._empty(slots, engine.vocabulary)
        self._projected, self._units = self._empty(slots, columns), self._empty(slots, engine.units)
        self._attended, self._sums = self._empty(slots, of.heads * of.head_size), self._empty(slots, of.heads)
        self._numbers: bytes | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.engine.device)

    @property
    def nbytes(self) -> int:
        """Of keys and values."""
        return self._cache.nbytes

    def _make_room(self, count: int) -> None:
        """For so many tokens more."""
        needed = self.length + count
        if needed <= self.room:
            return
        self.room = max(LEAST_ROOM, 1 << (needed - 1).bit_length())
        cache = torch.zeros(*self._cache.shape[:4], self.room, self._cache.shape[5], device=self.engine.device)
        cache[:, :, :, :, : self.length] = self._cache[:, :, :, :, : self.length]
        self._cache = cache
        more = torch.arange(self.slots)[:, None].expand(self.slots, self.room - self._whose.shape[1])
        self._whose = torch.cat([self._whose, more], 1)
        if self._visible is not None:
            self._visible = TF.pad(self._visible, (0, self.room - self._visible.shape[1]))
        self._prepare()

    def _prepare(self) -> None:
        """What a step is told; a graph of before is of other memory."""
        of = self.engine.spec
        lengths = self.room, 0 if self.memory is None else self.memory.kept.shape[4]
        heads = self.slots, of.heads, of.kv_heads, 1
        parts = [count_parts_of(*heads, length, torch.float32, self.engine.device) for length in lengths]
        most = max(parts)
        self._parts = self._empty(most, self.slots, of.heads, of.head_size) if most > 1 else None
        self._part_sums = self._empty(most, self.slots, of.heads) if most > 1 else None
        tensors = self._ids, self._positions, self._lengths, self._visible, self._cache
        tensors += self._x, self._projected, self._attended, self._units, self._logits
        tensors += self._sums, self._parts, self._part_sums
        tensors += (None, None, None) if self.memory is None else (self.memory.kept, self.memory.present, self._sources)
        of_memory = 0 if self.memory is None else self.memory.rows, lengths[1], parts[1]
        self._numbers = struct.pack("22q", self.slots, self.room, parts[0], *map(_address, tensors), *of_memory)
        self._graph = None

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """The logits after one more token of each sequence, on the current stream.

        Args:
            ids: (slots,), int64; of those that are none the logits are NaN.
            positions: (slots,) or (1,), int64, the same.

        Returns:
            (slots, vocabulary), float32.

        Raises:
            ValueError: for other shapes.
            TypeError: for another dtype or device.
        """
        self._check("ids", ids, (self.slots,))
        self._check("positions", positions, (self.slots,), (1,))
        self._make_room(1)
        self._ids.copy_(ids)
        self._positions.copy_(positions.expand(self.slots))
        self.replay()
        return self._logits.clone()

    def replay(self) -> None:
        """A step of the ids and positions that are there: by its graph, from the second one on."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self.engine.run(self._numbers)
            # That loaded what a capture must not load.
            if self.engine.device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
                self._graph = self._captured()
        self.length += 1

    def _captured(self) -> torch.cuda.CUDAGraph:
        """A step, not run. Without `torch.cuda.graph`, which collects garbage first."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.engine.device)
        stream = torch.cuda.Stream(self.engine.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self.engine.run(self._numbers)
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        return graph

    def greedy(self, ids: Tensor, positions: Tensor, banned: Tensor) -> Tensor | None:
        """The most likely tokens after one more of each sequence.

        Args:
            ids, positions: see `step`.
            banned: (count,), int64: tokens that are out of question.

        Returns:
            (slots,), int64.
        """
        logits = self.step(ids, positions)
        return logits.index_fill_(1, banned.to(logits.device), -torch.inf).argmax(-1)

    @torch.no_grad()
    def extend(self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int) -> Tensor:
        """The logits after some more tokens of each sequence; see `State.extend`.

        Raises:
            ValueError, TypeError: as `step`.
            IndexError: for ids or positions that are none, with nothing done.
        """
        count, of = ids.shape[-1], self.engine.spec
        shape = self.slots, count
        self._check("ids", ids, shape)
        self._check("positions", positions, shape)
        if visible is not None:
            self._check("visible", visible, shape, dtype=torch.bool)
        if count == 1 and keep == 1 and visible is None:
            return self.step(ids[:, 0], positions[:, 0]).unsqueeze(1)
        self._check_range(ids, self.engine.embedded)
        self._check_range(positions, 1 << 31 if of.positions is None else of.positions.shape[0])
        self._make_room(count)
        self._see(visible, count)
        found = []
        for first in range(0, count, MOST_TOKENS):
            part = slice(first, first + MOST_TOKENS)
            x = self._through(ids[:, part], positions[:, part])
            self._set_length(self.length + x.shape[1])
            found.append(x[:, max(0, count - keep - first) :])
        head = self.engine.head()
        return reference.linear(reference.normalize(torch.cat(found, 1), of.norm, of), head)

    def _check(self, name: str, given: Tensor, *shapes: tuple[int, ...], dtype: torch.dtype = torch.int64) -> None:
        if tuple(given.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise ValueError(f"{name}: expected {expected}, got {tuple(given.shape)}")
        if given.dtype != dtype or given.device != self.engine.device:
            expected = f"{dtype} on {self.engine.device}"
            raise TypeError(f"{name}: expected {expected}, got {given.dtype} on {given.device}")

    @staticmethod
    def _check_range(numbers: Tensor, end: int) -> None:
        if numbers.numel() and (numbers.min() < 0 or numbers.max() >= end):
            raise IndexError("index out of range in self")  # as an embedding says it

    def _see(self, visible: Tensor | None, count: int) -> None:
        """Notes which of the next tokens are seen; a step is told of it as soon as one is not."""
        if visible is not None and self._visible is None:
            self._visible = torch.zeros(self.slots, self.room, dtype=torch.bool, device=self.engine.device)
            self._visible[:, : self.length] = True
            self._prepare()
        if self._visible is not None:
            self._visible[:, self.length : self.length + count] = True if visible is None else visible

    def _set_length(self, length: int) -> None:
        self.length = length
        self._lengths.copy_(torch.tensor([length, length + 1]))

    def _through(self, ids: Tensor, positions: Tensor) -> Tensor:
        """All layers, by PyTorch: (slots, count, hidden)."""
        of = self.engine.spec
        x = TF.embedding(ids, of.embedding).float() * of.embedding_scale
        if of.positions is not None:
            x += TF.embedding(positions, of.positions)
        for index in range(self.engine.layers):
            layer = self.engine.layer(index)

            def attend(y: Tensor, index: int = index, layer: Layer = layer) -> Tensor:
                return self._attend(y, index, layer, positions)

            def attend_to_memory(y: Tensor, index: int = index, layer: Layer = layer) -> Tensor:
                return self._attend_to_memory(y, index, layer)

            x = reference.run_layer(x, layer, of, attend, attend_to_memory)
        return x

    def _attend(self, x: Tensor, index: int, layer: Layer, positions: Tensor) -> Tensor:
        of, count, end = self.engine.spec, x.shape[1], self.length + x.shape[1]
        heads = reference.heads_of(x, layer.projections, of)
        query, key, value = heads.split((of.heads, of.kv_heads, of.kv_heads), 1)
        query, key = (reference.rotate(each, positions, of) for each in (query, key))
        for kept, new in zip(self._cache[index], (key, value), strict=True):
            kept[:, :, self.length : end] = new
        keys, values = self._cache[index, :, :, :, :end]
        is_plain = self.length == 0 and self._visible is None and (layer.window is None or layer.window >= end)
        seen = None if is_plain else self._seen(count, end, layer.window)
        given = {"scale": layer.scale, "enable_gqa": of.heads != of.kv_heads}
        found = TF.scaled_dot_product_attention(query, keys, values, seen, is_causal=is_plain, **given)
        return reference.linear(found.transpose(1, 2).flatten(2), layer.out)

    def _attend_to_memory(self, x: Tensor, index: int, layer: Layer) -> Tensor:
        of, cross, memory = self.engine.spec, layer.cross, self.memory
        keys, values = memory.kept[index][:, self._sources]
        present = None if memory.present is None else memory.present[self._sources][:, None, None]
        given = {"scale": cross.scale, "enable_gqa": of.heads != of.kv_heads}
        query = reference.heads_of(x, (cross.query,), of)
        found = TF.scaled_dot_product_attention(query, keys, values, present, **given)
        return reference.linear(found.transpose(1, 2).flatten(2), cross.out)

    def _seen(self, count: int, end: int, window: int | None) -> Tensor:
        """(slots or 1, 1, count, end): what the last tokens see."""
        device = self.engine.device
        distance = torch.arange(end, device=device) - torch.arange(end - count, end, device=device)[:, None]
        seen = distance <= 0 if window is None else (distance <= 0) & (distance > -window)
        return seen[None, None] if self._visible is None else seen & self._visible[:, None, None, :end]

    def reorder(self, parents: Tensor) -> None:
        """Lets every sequence go on from what another one has seen; `parents` (slots,), int64."""
        whose = self._whose[:, : self.length]
        going_on = whose[parents.cpu()]
        changed = (going_on != whose).any(0).nonzero()
        whose.copy_(going_on)
        parents = parents.to(self.engine.device)
        if len(changed):
            # Those that part late have most of their tokens in common.
            kept = self._cache[:, :, :, :, int(changed[0]) : self.length]
            kept.copy_(kept.index_select(2, parents))
        for of_slots in (self._visible, self._sources):
            if of_slots is not None:
                of_slots.copy_(of_slots.index_select(0, parents))

    def crop(self, length: int) -> None:
        """Forgets all but the first tokens of each sequence."""
        self._whose[:, length:] = torch.arange(self.slots)[:, None]
        self._set_length(length)

    def export(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (slots, kv_heads, length, head_size), zeros for what is hidden."""
        found = self._cache[:, :, :, :, : self.length]
        if self._visible is not None:
            found = found.where(self._visible[:, None, : self.length, None], 0.0)
        return [tuple(pair.clone() for pair in layer) for layer in found]

    def load(self, layers: Sequence[tuple[Tensor, Tensor]], visible: Tensor | None) -> None:
        """Begins with keys and values that another computed; see `State.load`."""
        count = layers[0][0].shape[2]
        self._make_room(count)
        self._see(visible, count)
        for kept, pair in zip(self._cache, layers, strict=True):
            kept[0, :, :, :count], kept[1, :, :, :count] = pair
        self._set_length(count)
