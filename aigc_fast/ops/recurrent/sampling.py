"""Sequences of tokens that a recurrent network draws itself: an embedding, its layers, a head, and a draw, in one call.

Token i is drawn by the uniform number i of a key, as `aigc_fast.functional.rand` would give. There is no op for
torch.library: what is drawn next depends on what was drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from aigc_fast.ops.random.operators import draw_key
from aigc_fast.ops.random.philox import words
from aigc_fast.ops.recurrent import cpu, reference
from aigc_fast.ops.recurrent.sizes import CODES, WITH_CELLS, Drawing, Options
from aigc_fast.runtime.arguments import check_types, number, whole
from aigc_fast.runtime.backends import Choice
from aigc_fast.runtime.weights import weights_code

# Tokens that one native call draws, after which Python can handle signals.
AT_ONCE = 1024


class Draw(NamedTuple):
    """How tokens are drawn.

    Attributes:
        temperature: what logits are divided by; 0 takes the greatest.
        top_k: how many of the greatest logits may be drawn, and those that equal the least of them; 0 for all.
        top_p: the fewest of the likeliest tokens may be drawn that have so much of the probability together, of equals
            the first; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def draw_of(temperature: float, top_k: int | None, top_p: float | None) -> Draw:
    """The options, checked.

    Raises:
        ValueError: for a temperature below 0, fewer than one token or a probability outside of (0, 1].
        TypeError: for what is no number.
    """
    temperature, top_p = number("temperature", temperature), None if top_p is None else number("top_p", top_p)
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature={temperature}: expected a finite number, 0 or more")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"top_k={top_k}: expected a number of tokens, 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p}: expected a probability, above 0 and at most 1")
    return Draw(temperature, top_k or 0, 1.0 if top_p is None else top_p)


def draw_token(logits: Tensor, uniform: float, draw: Draw) -> int:
    """The token that a uniform number picks among logits (V,); -1 where they define no probabilities."""
    best = int(logits.argmax())
    if logits.isnan().any() or not logits[best].isfinite():
        return -1
    if draw.temperature == 0:
        return best
    scaled = (logits.double() - logits[best].double()) / draw.temperature
    if 0 < draw.top_k < logits.numel():
        scaled = scaled.masked_fill(logits < logits.topk(draw.top_k).values[-1], float("-inf"))
    probabilities = scaled.exp()
    if draw.top_p < 1:
        falling, order = probabilities.sort(descending=True, stable=True)
        sums = falling.cumsum(0)
        enough = int((sums < draw.top_p * sums[-1]).sum())
        probabilities[order[enough + 1 :]] = 0
    reached = probabilities.cumsum(0) > uniform * probabilities.sum()
    return int(reached.to(torch.uint8).argmax())


def _reference(asked: Drawing) -> tuple[Tensor, ...]:
    """The tokens that were drawn, by weights as they are, -1 for those that could not be, and the last states."""
    options, states, embedding = asked.options, asked.states, asked.embedding
    position, length, draw = asked.position, asked.length, Draw(asked.temperature, asked.top_k, asked.top_p)
    uniforms = (words(position + length, asked.key.cpu()).flatten()[position : position + length] >> 8) * 2.0**-24
    weight, bias = (*asked.head, None)[:2]
    given, drawn = asked.tokens.tolist(), []
    for token in given[:-1]:
        _, *states = _one_step(embedding[token], states, asked.params, options)
    token = given[-1]
    for uniform in uniforms.tolist():
        hidden, *states = _one_step(embedding[token], states, asked.params, options)
        token = draw_token(TF.linear(hidden, weight, bias), uniform, draw)
        drawn.append(token)
        if token < 0:
            break
    ids = asked.tokens.new_full((length,), -1)
    ids[: len(drawn)] = torch.tensor(drawn, dtype=torch.int64)
    return ids, *(state.clone() for state in states)


def _one_step(x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor], options: Options) -> tuple[Tensor, ...]:
    output, hidden, cells, _ = reference.recurrent(x[None, None], None, states, params, *options, False)
    return output[0, 0], hidden, *([cells] if options.states == 2 else [])


SAMPLE = Choice("recurrent_sample")
SAMPLE.register("reference", _reference)
SAMPLE.register("cpu", cpu.recurrent_sample, cpu.sample_unsupported)


def _checked(
    recurrent: nn.RNNBase, embedding: nn.Embedding, head: nn.Linear, tokens: Tensor, state: Any
) -> tuple[Tensor, ...]:
    """The states before the tokens."""
    check_types(tokens=tokens)
    if recurrent.bidirectional:
        raise ValueError(f"{recurrent!r} is bidirectional: expected one direction")
    size, hidden = recurrent.proj_size or recurrent.hidden_size, recurrent.hidden_size
    if embedding.embedding_dim != recurrent.input_size:
        raise ValueError(f"embedding has embedding_dim {embedding.embedding_dim}: expected {recurrent.input_size}")
    if head.in_features != size:
        raise ValueError(f"head has in_features {head.in_features}: expected {size}")
    if head.out_features > embedding.num_embeddings:
        raise ValueError(
            f"head has out_features {head.out_features}: expected at most embedding's {embedding.num_embeddings}"
        )
    if tokens.dim() != 1 or tokens.dtype != torch.int64 or not len(tokens):
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)}, {tokens.dtype}: expected (T,), torch.int64, T at least 1"
        )
    lowest, highest = int(tokens.min()), int(tokens.max())
    if lowest < 0 or highest >= embedding.num_embeddings:
        raise IndexError(f"tokens: expected 0 to {embedding.num_embeddings - 1}, got {lowest} to {highest}")
    has_cells = CODES[recurrent.mode] in WITH_CELLS
    shapes = [(recurrent.num_layers, width) for width in (size, hidden)[: 1 + has_cells]]
    if state is None:
        return tuple(embedding.weight.new_zeros(layers, 1, width) for layers, width in shapes)
    states = tuple(state) if has_cells else (state,)
    for given, (layers, width) in zip(states, shapes, strict=True):
        if given.shape not in ((layers, 1, width), (layers, width)):
            raise ValueError(f"state has shape {tuple(given.shape)}: expected ({layers}, 1, {width})")
    return tuple(given.reshape(layers, 1, width) for given, (layers, width) in zip(states, shapes, strict=True))


def sample_tokens(
    recurrent: nn.RNNBase,
    embedding: nn.Embedding,
    head: nn.Linear,
    tokens: Tensor,
    state: Any = None,
    length: int = 1,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    key: Tensor | None = None,
    position: int = 0,
) -> tuple[Tensor, Any]:
    """`aigc_fast.nn.LSTM.sample` for any recurrent module; arguments, results and errors as there.

    Args:
        recurrent: an nn.RNN, LSTM, GRU or LayerNormLSTM of one direction, of any number of layers; its attribute
            `weights`, where `optimize` set it, is the format of its weights and those of `head`.
    """
    draw, length = draw_of(temperature, top_k, top_p), whole("length", length)
    if length < 0:
        raise ValueError(f"length={length}: expected a number of tokens, 0 or more")
    with torch.no_grad():
        states = list(_checked(recurrent, embedding, head, tokens, state))
        if key is None:
            key = draw_key(tokens, generator)
        weight = embedding.weight if embedding.max_norm is None else embedding(torch.arange(embedding.num_embeddings))
        params = [getattr(recurrent, name) for names in recurrent._all_weights for name in names]
        heads = [head.weight] if head.bias is None else [head.weight, head.bias]
        numbers = CODES[recurrent.mode], recurrent.num_layers, recurrent.bias
        last = getattr(recurrent, "eps", 0.0), weights_code(recurrent)
        parts = []
        while True:
            count = min(length, AT_ONCE)
            asked = Drawing(tokens, states, weight, params, heads, key, position, count, *draw, *numbers, *last)
            ids, *states = SAMPLE.runner((asked,)).run(asked)
            if count and int(ids[-1]) < 0:
                made = sum(map(len, parts)) + int((ids >= 0).sum())
                raise RuntimeError(f"the logits of token {made} hold NaN or infinity: expected finite numbers")
            parts.append(ids)
            length, position = length - count, position + count
            if not length:
                break
            tokens = ids[-1:]
    return torch.cat(parts) if len(parts) > 1 else parts[0], tuple(states) if len(states) > 1 else states[0]
