"""Sequences that recurrent networks draw: every token against float64's probabilities, cuts, threads, bad input."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.ops.random.philox import words
from aigc_fast.ops.recurrent.sampling import AT_ONCE, Draw, draw_token, sample_tokens
from aigc_fast.runtime import native

needs_native = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
LEVELS = native.levels()


def parts_of(kind: str, inputs: int, hidden: int, vocabulary: int, heads: int | None = None, **options: Any) -> Any:
    torch.manual_seed(hidden)
    cell = {"relu": "RNN", "tanh": "RNN"}.get(kind, kind)
    named = {"nonlinearity": kind} if cell == "RNN" else {}
    recurrent = getattr(fast_nn, cell)(inputs, hidden, **named, **options)
    head = nn.Linear(options.get("proj_size") or hidden, heads or vocabulary)
    with torch.no_grad():
        # Neither nearly uniform nor nearly certain.
        head.weight.mul_(3)
    return recurrent, nn.Embedding(vocabulary, inputs), head


def assert_drawn(parts: Any, prompt: Tensor, ids: Tensor, key: Tensor, draw: Draw, state: Any = None) -> None:
    """Each token lies where its uniform number falls among float64's probabilities, after the tokens before it."""
    recurrent, embedding, head = (copy.deepcopy(part).double() for part in parts)
    state = state if state is None else tuple(part.double() for part in state)
    fed = torch.cat([prompt, ids])[:-1]
    x = embedding(fed).unsqueeze(0 if recurrent.batch_first else 1)
    with torch.no_grad(), aigc_fast.backend("reference"):
        logits = head(recurrent(x, state)[0].reshape(len(fed), -1)[len(prompt) - 1 :])
    uniforms = (words(len(ids), key).flatten()[: len(ids)] >> 8) * 2.0**-24
    for step, (row, uniform) in enumerate(zip(logits, uniforms.tolist(), strict=True)):
        near = {draw_token(row + error, uniform + shift, draw) for error, shift in itertools.product(*ROUNDINGS)}
        assert int(ids[step]) in near, f"token {step}"


ROUNDINGS = ((0.0,), (-1e-4, 0.0, 1e-4))
KINDS = ("LSTM", "GRU", "tanh", "relu")
DRAWS = [Draw(0.0), Draw(0.6), Draw(1.7, 3), Draw(1.0, 0, 0.7), Draw(0.9, 5, 0.8), Draw(1.0, 99)]


@needs_native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_drawn_by_its_number(kind: str, level: str) -> None:
    key = torch.tensor([11, 2**40])
    for (inputs, hidden, vocabulary), layers, bias in itertools.product(
        ((8, 16, 17), (3, 33, 5), (64, 70, 113)), (1, 3), (True, False)
    ):
        parts = parts_of(kind, inputs, hidden, vocabulary, num_layers=layers, bias=bias)
        prompt = torch.tensor([1, 3, 1])
        with native.use_level(level):
            ids, _ = sample_tokens(*parts, prompt, None, 23, key=key)
        assert ids.shape == (23,)
        assert ids.dtype == torch.int64
        assert_drawn(parts, prompt, ids, key, Draw())


@needs_native
def test_projected_states_a_state_before_and_fewer_logits_than_embeddings() -> None:
    key, prompt = torch.tensor([5, 9]), torch.tensor([20])
    parts = parts_of("LSTM", 6, 20, 21, heads=9, num_layers=2, proj_size=7, batch_first=True)
    state = torch.randn(2, 1, 7), torch.randn(2, 1, 20)
    ids, last = sample_tokens(*parts, prompt, state, 40, key=key)
    assert int(ids.max()) < 9
    with torch.no_grad():
        fed = torch.cat([prompt, ids])[:-1]
        _, expected = parts[0](parts[1](fed)[None], state)
    for found, wanted in zip(last, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert_drawn(parts, prompt, ids, key, Draw(), state)


@pytest.mark.parametrize("backend", ["reference", *(["cpu"] if native.cpu_reason() is None else [])])
@pytest.mark.parametrize(
    "draw", [Draw(0.0), Draw(0.6), Draw(1.7, 3), Draw(1.0, 0, 0.7), Draw(0.9, 5, 0.8), Draw(1, 99)]
)
def test_temperature_top_k_and_top_p(draw: Draw, backend: str) -> None:
    parts = parts_of("GRU", 5, 12, 31)
    key, prompt = torch.tensor([1, 2]), torch.tensor([0, 4])
    with aigc_fast.backend(backend):
        ids, _ = sample_tokens(
            *parts, prompt, None, 60, temperature=draw.temperature, top_k=draw.top_k or None, top_p=draw.top_p, key=key
        )
    assert_drawn(parts, prompt, ids, key, draw)


def test_a_token_of_a_worked_example() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    drawn = [draw_token(logits, uniform, Draw()) for uniform in (0.0, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.999)]
    assert drawn == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [draw_token(logits, uniform, Draw(top_k=2)) for uniform in (0.0, 0.57, 0.58)] == [1, 1, 3]
    assert [draw_token(logits, uniform, Draw(top_p=0.75)) for uniform in (0.0, 0.44, 0.45, 0.66, 0.67)] == [
        1,
        1,
        2,
        2,
        3,
    ]
    assert draw_token(logits, 0.99, Draw(0.0)) == 1
    assert draw_token(torch.tensor([0.0, float("nan")]), 0.5, Draw()) == -1
    assert draw_token(torch.tensor([0.0, float("inf")]), 0.5, Draw()) == -1
    assert draw_token(torch.tensor([float("-inf"), 0.0]), 0.0, Draw()) == 1


@needs_native
def test_the_native_draw_is_the_references() -> None:
    """Of logits that hold no rounding: the head's bias alone."""
    values = torch.tensor([0.5, 2.0, 2.0, -1.0, float("-inf"), 1.0, -3.0])
    parts = parts_of("LSTM", 2, 4, 7)
    with torch.no_grad():
        parts[2].weight.zero_()
        parts[2].bias.copy_(values)
    key = torch.tensor([3, 4])
    uniforms = (words(200, key).flatten() >> 8) * 2.0**-24
    for draw in (Draw(), Draw(0.0), Draw(0.5), Draw(top_k=1), Draw(top_k=3), Draw(top_p=0.5), Draw(2.0, 4, 0.9)):
        options = {"temperature": draw.temperature, "top_k": draw.top_k or None, "top_p": draw.top_p}
        ids, _ = sample_tokens(*parts, torch.tensor([0]), None, 200, key=key, **options)
        near = [
            {draw_token(values, uniform + shift, draw) for shift in (-1e-6, 0, 1e-6)} for uniform in uniforms.tolist()
        ]
        assert all(token in allowed for token, allowed in zip(ids.tolist(), near, strict=True)), draw


@pytest.mark.parametrize("backend", ["reference", *(["cpu"] if native.cpu_reason() is None else [])])
def test_cuts_and_threads_change_nothing(backend: str) -> None:
    parts = parts_of("LSTM", 64, 128, 40, num_layers=2)
    key, prompt = torch.tensor([8, 1]), torch.tensor([2, 3])
    with aigc_fast.backend(backend):
        whole, last = sample_tokens(*parts, prompt, None, 50, key=key)
        state, tokens, position, pieces = None, prompt, 0, []
        for count in (0, 1, 4, 17, 28):
            ids, state = sample_tokens(*parts, tokens, state, count, key=key, position=position)
            pieces.append(ids)
            position += count
            tokens = ids[-1:] if count else tokens[-1:]
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            other, _ = sample_tokens(*parts, prompt, None, 50, key=key)
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(other, whole)
    for found, wanted in zip(state, last, strict=True):
        torch.testing.assert_close(found, wanted)


@needs_native
def test_long_sequences_are_drawn_in_pieces() -> None:
    parts = parts_of("tanh", 2, 3, 4)
    key, length = torch.tensor([8, 1]), AT_ONCE + 5
    ids, _ = sample_tokens(*parts, torch.tensor([1]), None, length, key=key)
    assert_drawn(parts, torch.tensor([1]), ids, key, Draw())


def test_generators_and_seeds() -> None:
    parts, prompt = parts_of("GRU", 4, 8, 30), torch.tensor([7])
    first, _ = sample_tokens(*parts, prompt, None, 30, generator=torch.Generator().manual_seed(5))
    again, _ = sample_tokens(*parts, prompt, None, 30, generator=torch.Generator().manual_seed(5))
    other, _ = sample_tokens(*parts, prompt, None, 30, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    assert torch.equal(sample_tokens(*parts, prompt, None, 30)[0], first)


def test_weights_that_change_are_seen() -> None:
    parts, prompt, key = parts_of("LSTM", 4, 8, 30), torch.tensor([7]), torch.tensor([1, 1])
    for _ in range(3):
        sample_tokens(*parts, prompt, None, 200, key=key)
    parts[0].weight_hh_l0.data.mul_(-2)
    ids, _ = sample_tokens(*parts, prompt, None, 200, key=key)
    assert_drawn(parts, prompt, ids, key, Draw())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    parts = [part.to(dtype) for part in parts_of("LSTM", 4, 8, 30)]
    ids, (hidden, _) = sample_tokens(*parts, torch.tensor([7]), None, 9, key=torch.tensor([1, 1]))
    assert hidden.dtype == dtype
    assert int(ids.min()) >= 0
    assert int(ids.max()) < 30


@pytest.mark.parametrize("backend", ["reference", *(["cpu"] if native.cpu_reason() is None else [])])
def test_bad_input(backend: str) -> None:
    parts, prompt = parts_of("LSTM", 4, 8, 30), torch.tensor([7])
    with aigc_fast.backend(backend):
        for options, message in (
            ({"temperature": -1.0}, "temperature=-1.0: expected"),
            ({"top_k": 0}, "top_k=0: expected"),
            ({"top_p": 0.0}, "top_p=0.0: expected"),
            ({"top_p": 1.5}, "top_p=1.5: expected"),
            ({"length": -1}, "length=-1: expected"),
            ({"state": (torch.zeros(1, 2, 8), torch.zeros(1, 1, 8))}, r"state has shape \(1, 2, 8\)"),
        ):
            with pytest.raises(ValueError, match=message):
                sample_tokens(*parts, prompt, **options)
        for options, message in (
            ({"temperature": "warm"}, "temperature is str: expected a number"),
            ({"top_p": [0.5]}, "top_p is list: expected a number"),
            ({"length": 2.5}, "length is float: expected an integer"),
        ):
            with pytest.raises(TypeError, match=message):
                sample_tokens(*parts, prompt, **options)
        with pytest.raises(TypeError, match="tokens is list: expected a Tensor"):
            sample_tokens(*parts, [7])
        with pytest.raises(ValueError, match=r"tokens has shape \(0,\), torch.int64"):
            sample_tokens(*parts, prompt[:0])
        with pytest.raises(IndexError, match="tokens: expected 0 to 29, got 30 to 30"):
            sample_tokens(*parts, torch.tensor([30]))
        with pytest.raises(ValueError, match="embedding has embedding_dim 5: expected 4"):
            sample_tokens(parts[0], nn.Embedding(30, 5), parts[2], prompt)
        with pytest.raises(ValueError, match="head has in_features 9: expected 8"):
            sample_tokens(parts[0], parts[1], nn.Linear(9, 30), prompt)
        with pytest.raises(ValueError, match="head has out_features 31: expected at most embedding's 30"):
            sample_tokens(parts[0], parts[1], nn.Linear(8, 31), prompt)
        with pytest.raises(ValueError, match="is bidirectional"):
            sample_tokens(fast_nn.LSTM(4, 4, bidirectional=True), parts[1], parts[2], prompt)
        with torch.no_grad():
            parts[2].bias[3] = float("nan")
        with pytest.raises(RuntimeError, match="the logits of token 0 hold NaN or infinity"):
            sample_tokens(*parts, prompt, None, 5)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_step_is_a_sequence_of_one(cell: str, batch_first: bool) -> None:
    module = getattr(fast_nn, cell)(5, 7, 2, batch_first=batch_first)
    x, state = torch.randn(3, 4, 5), None
    with torch.no_grad():
        whole, last = module(x.transpose(0, 1) if batch_first else x)
        for t in range(3):
            output, state = module.step(x[t], state)
            torch.testing.assert_close(output, whole[:, t] if batch_first else whole[t])
        single, _ = module.step(x[0, 0])
    torch.testing.assert_close(single, (whole[:, 0] if batch_first else whole[0])[0])
    torch.testing.assert_close(state, last)
    with pytest.raises(ValueError, match="expected"):
        module.step(x)
    with pytest.raises(ValueError, match="bidirectional"):
        getattr(fast_nn, cell)(5, 7, bidirectional=True).step(x[0])
