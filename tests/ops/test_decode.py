"""The native engine of decoders against the same in plain PyTorch, on every instruction-set level of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_fast.ops.decode import reference
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.ops.decode.lookup import Lookup
from aigc_fast.ops.decode.spec import Layer, Linear, Norm, Spec
from aigc_fast.runtime import native
from aigc_fast.runtime.weights import WEIGHTS

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

VOCABULARY, POSITIONS, LENGTH = 131, 90, 50


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.use_level(request.param):
        yield request.param


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape) * scale


def _linear(outputs: int, inputs: int, bias: bool) -> Linear:
    return Linear(_random(outputs, inputs, scale=1.2 * inputs**-0.5), _random(outputs, scale=0.1) if bias else None)


def _norm(hidden: int, bias: bool) -> Norm:
    return Norm(1 + _random(hidden, scale=0.1), _random(hidden, scale=0.1) if bias else None)


def _spec(hidden: int, heads: int, kv_heads: int, size: int, units: int, kind: str) -> Spec:
    """GPT-2's kind has one projection, biases and learned positions; Llama's three, a gate and a rotation."""
    is_gpt2 = kind == "gpt2"
    columns = heads * size, kv_heads * size, kv_heads * size
    layers = tuple(
        Layer(
            _norm(hidden, is_gpt2),
            _norm(hidden, is_gpt2),
            tuple(_linear(count, hidden, is_gpt2) for count in ((sum(columns),) if is_gpt2 else columns)),
            _linear(hidden, heads * size, is_gpt2),
            _linear(units, hidden, is_gpt2),
            None if is_gpt2 else _linear(units, hidden, False),
            _linear(hidden, units, is_gpt2),
            size**-0.5,
        )
        for _ in range(2)
    )
    rotated = size // 2 - size // 2 % 2  # fewer than there are
    return Spec(
        _random(VOCABULARY, hidden),
        _random(POSITIONS, hidden, scale=0.3) if is_gpt2 else None,
        None if is_gpt2 else 10.0 ** -torch.linspace(0, 2, rotated // 2),
        1.1,
        layers,
        _norm(hidden, is_gpt2),
        _linear(VOCABULARY, hidden, is_gpt2),
        heads,
        kv_heads,
        size,
        1e-5,
        "LAYER_NORM" if is_gpt2 else "RMS_NORM",
        "GELU_TANH" if is_gpt2 else "SILU",
    )


SPECS: dict[str, Callable[[], Spec]] = {
    "gpt2": lambda: _spec(96, 6, 6, 16, 200, "gpt2"),
    "gpt2-odd": lambda: _spec(37, 3, 3, 11, 71, "gpt2"),
    "llama": lambda: _spec(64, 8, 2, 8, 96, "llama"),
    "llama-odd": lambda: _spec(75, 9, 1, 13, 33, "llama"),
}


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Spec:
    torch.manual_seed(3)
    return SPECS[request.param]()


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A spec with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _given(rows: int = 3, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    return torch.randint(VOCABULARY, (rows, length)), torch.arange(length).expand(rows, length)


def _error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def test_float32_is_as_exact_as_pytorchs_on_every_level(spec: Spec, level: str) -> None:
    ids, positions = _given()
    exact = reference.logits(mapped(spec, Tensor.double), ids, positions)
    state = Engine(spec, "fp32").begin(3)
    found = state.extend(ids, positions, None, LENGTH)
    assert _error(found, exact) < 2 * _error(reference.logits(spec, ids, positions), exact) + 1e-7


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_way_through_gives_the_same_bits_on_every_level(spec: Spec, level: str, weights: str) -> None:
    ids, positions = _given(length=12)
    engine = Engine(spec, weights)
    whole = engine.begin(3).extend(ids, positions, None, 12)
    by_steps, alone = engine.begin(3), engine.begin(1)
    for i in range(12):
        assert torch.equal(by_steps.step(ids[:, i], positions[:, i]), whole[:, i])
    assert torch.equal(alone.extend(ids[2:], positions[2:], None, 12)[0], whole[2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(engine.begin(3).extend(ids, positions, None, 12), whole)
    finally:
        torch.set_num_threads(before)


def _fake_bytes(weight: Tensor) -> Tensor:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round() * scale


def _fake_nibbles(weight: Tensor) -> Tensor:
    depth = weight.shape[1]
    groups = torch.nn.functional.pad(weight, (0, -depth % 32)).unflatten(1, (-1, 32))
    farthest = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    tried = []
    for steps in (-8.0, -8.5, -7.5, -7.0, 7.0, 7.5):
        scale = (farthest / steps).half().float()
        tried.append((groups / scale).nan_to_num(0).round().clamp(-8, 7) * scale)
    stacked = torch.stack(tried)
    best = (stacked - groups).square().sum(-1, keepdim=True).argmin(0, keepdim=True)
    return stacked.gather(0, best.expand(1, *groups.shape))[0].flatten(1)[:, :depth]


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_smaller_weights_are_what_they_are_rounded_to_on_every_level(spec: Spec, level: str, weights: str) -> None:
    fake = {"bf16": lambda weight: weight.bfloat16().float(), "int8": _fake_bytes, "int4": _fake_nibbles}[weights]
    head_fake = _fake_bytes if weights == "int4" else fake

    def rounded(linear: Linear | None, by: Callable[[Tensor], Tensor] = fake) -> Linear | None:
        return linear and linear._replace(weight=by(linear.weight))

    layers = [
        layer._replace(
            projections=tuple(map(rounded, layer.projections)),
            **{name: rounded(getattr(layer, name)) for name in ("out", "up", "gate", "down")},
        )
        for layer in spec.layers
    ]
    same = spec._replace(layers=tuple(layers), head=rounded(spec.head, head_fake))
    ids, positions = _given()
    exact = reference.logits(mapped(same, Tensor.double), ids, positions)
    found = Engine(spec, weights).begin(3).extend(ids, positions, None, LENGTH)
    # What is left is what activations are rounded to.
    assert _error(found, exact) < {"bf16": 2e-6, "int8": 0.04, "int4": 0.04}[weights]


def test_hidden_tokens_are_not_seen(spec: Spec) -> None:
    ids, positions = _given(3, 20)
    visible = torch.rand(3, 20) > 0.3
    visible[:, 0] = torch.tensor([True, False, False])
    exact = reference.logits(mapped(spec, Tensor.double), ids, positions, visible)
    state = Engine(spec, "fp32").begin(3)
    found = [state.extend(ids[:, :17], positions[:, :17], visible[:, :17], 3)]
    found += [state.extend(ids[:, 17:], positions[:, 17:], visible[:, 17:], 3)]
    assert _error(torch.cat(found, 1), exact[:, 14:]) < 2e-6


def test_sequences_part_and_go_back(spec: Spec) -> None:
    ids, positions = _given(4, 30)
    ids[:, :10] = ids[:1, :10]
    ids[2:, :10] = ids[2:3, :10] + 0
    engine = Engine(spec, "fp32")
    state = engine.begin(4)
    state.extend(ids[:, :10], positions[:, :10], None, 1)
    for i in range(10, 20):
        state.step(ids[:, i], positions[:, i])
    parents = torch.tensor([3, 0, 0, 1])
    state.reorder(parents)
    found = state.step(ids[:, 20], positions[:, 20])
    history = torch.cat([ids[parents, :20], ids[:, 20:21]], 1)
    plain = engine.begin(4).extend(history, positions[:, :21], None, 1)[:, 0]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    state.crop(15)
    assert state.length == 15
    again = state.step(history[:, 15], positions[:, 15])
    plain = engine.begin(4).extend(history[:, :16], positions[:, :16], None, 1)[:, 0]
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


def test_keys_and_values_go_out_and_in(spec: Spec, level: str) -> None:
    ids, positions = _given(2, 25)
    visible = torch.ones(2, 25, dtype=torch.bool)
    visible[1, :4] = False
    engine = Engine(spec, "fp32")
    state = engine.begin(2)
    state.extend(ids[:, :24], positions[:, :24], visible[:, :24], 1)
    layers = state.export()
    assert layers[0][0].shape == (2, spec.kv_heads, 24, spec.head_size)
    assert not layers[0][0][1, :, :4].any()
    other = engine.begin(2)
    other.load(layers, visible[:, :24])
    wanted, found = (each.step(ids[:, 24], positions[:, 24]) for each in (state, other))
    assert torch.equal(wanted, found)
    assert state.nbytes > 0


def test_long_prompts_in_parts(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = _given(2, 40)
    engine = Engine(spec, "fp32")
    whole = engine.begin(2).extend(ids, positions, None, 6)
    monkeypatch.setattr("aigc_fast.ops.decode.engine.MOST_TOKENS", 13)
    parts = engine.begin(2).extend(ids, positions, None, 6)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_shows_on_every_level(spec: Spec, level: str) -> None:
    spec.embedding[7] = torch.nan
    ids, positions = _given(2, 3)
    ids[0], ids[1] = 5, 7
    for weights in WEIGHTS:
        found = Engine(spec, weights).begin(2).extend(ids, positions, None, 1)
        assert found[0].isfinite().all()
        assert found[1].isnan().all()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_tokens_are_the_logits_greatest_on_every_level(spec: Spec, level: str, rows: int) -> None:
    spec = spec._replace(head=Linear(_random(1500, spec.embedding.shape[1])))
    # Some columns are alike, so that the first of equal ones is wanted.
    spec.head.weight[900:] = spec.head.weight[:600]
    engine = Engine(spec, "fp32")
    assert engine.certify(spec)
    assert engine.nbytes > Engine(spec, "fp32").nbytes
    ids, positions = _given(rows, 20)
    none = torch.empty(0, dtype=torch.int64)
    plain, sure, banning = (engine.begin(rows) for _ in range(3))
    for i in range(20):
        logits = plain.step(ids[:, i], positions[:, i])
        assert torch.equal(sure.greedy(ids[:, i], positions[:, i], none), logits.argmax(-1))
        banned = logits.topk(3).indices[:, 0].unique()
        logits[:, banned] = -torch.inf
        assert torch.equal(banning.greedy(ids[:, i], positions[:, i], banned), logits.argmax(-1))
    spec.embedding[5] = torch.inf
    assert sure.greedy(torch.full((rows,), 5), positions[:, 0], none) is None
    assert sure.length == 20


def test_a_screen_needs_finite_weights(spec: Spec) -> None:
    weight = _random(40, spec.embedding.shape[1])
    weight[3, 2] = torch.inf
    bad = spec._replace(head=Linear(weight))
    assert not Engine(bad, "fp32").certify(bad)
    assert not Engine(spec._replace(head=Linear(weight)), "int8").certify(bad)


def test_lookup_takes_the_most_recent_of_the_longest_matches() -> None:
    lookup = Lookup([1, 2, 3, 9, 7, 2, 3, 4, 5, 8, 2, 3, 6, 0, 3, 1, 2, 3])
    assert lookup.following(3) == [9, 7, 2]  # after 1, 2, 3
    lookup.add(8)
    assert lookup.following(2) == [2, 3]
    for token in (2, 3):
        lookup.add(token)
    assert lookup.following(9) == [6, 0, 3, 1, 2, 3, 8, 2, 3]
    lookup.add(11)
    assert lookup.following(4) == []
    assert Lookup([5, 5]).following(4) == [5]


def test_bad_ids_and_positions(spec: Spec) -> None:
    state = Engine(spec, "fp32").begin(1)
    zero = torch.zeros(1, dtype=torch.int64)
    for bad in (-1, VOCABULARY):
        with pytest.raises(IndexError, match="out of range"):
            state.step(zero + bad, zero)
    if spec.positions is not None:
        with pytest.raises(IndexError, match="out of range"):
            state.step(zero, zero + POSITIONS)
    assert state.length == 0
    state.step(zero, zero)


def test_engines_follow_their_weights(spec: Spec) -> None:
    engine = Engine(spec, "int8")
    assert engine.is_current(spec, "int8", 1)
    assert engine.is_current(spec, "int8", 10**6)
    assert not engine.is_current(spec, "fp32", 1)
    spec.layers[1].down.weight.data[0, 0] += 1
    assert not engine.is_current(spec, "int8", 10**6)
