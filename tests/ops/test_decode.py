"""The native engine of decoders against the same in plain PyTorch, on every instruction-set level of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as TF
from decoder_specs import (
    LENGTHS,
    POSITIONS,
    SPECS,
    VOCABULARY,
    begin,
    encoded_rows,
    exact_logits,
    fake_bytes,
    fake_nibbles,
    make_spec,
    mapped,
    norm_of_error,
    random_numbers,
    rounded_to,
)
from torch import Tensor, nn

from aigc_fast.ops.decode.candidates import best_continuations
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.ops.decode.hypotheses import Hypotheses
from aigc_fast.ops.decode.lookup import Lookup
from aigc_fast.ops.decode.spec import Cross, Layer, Linear, Norm, Spec
from aigc_fast.runtime import native
from aigc_fast.runtime.backends import backend
from aigc_fast.runtime.weights import CODES as WEIGHT_CODES
from aigc_fast.runtime.weights import WEIGHTS

pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

LENGTH = 50


@pytest.fixture(params=native.levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with native.use_level(request.param):
        yield request.param


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Spec:
    torch.manual_seed(3)
    return SPECS[request.param]()


def _given(rows: int = 3, length: int = LENGTH) -> tuple[Tensor, Tensor]:
    return torch.randint(VOCABULARY, (rows, length)), torch.arange(length).expand(rows, length)


def test_float32_is_as_exact_as_pytorchs_on_every_level(spec: Spec, level: str) -> None:
    ids, positions = _given()
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions)
    state = begin(Engine(spec, "fp32"), 3)
    found = state.extend(ids, positions, None, LENGTH)
    assert norm_of_error(found, exact) < 2 * norm_of_error(exact_logits(spec, ids, positions), exact) + 1e-7


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_way_through_gives_the_same_bits_on_every_level(spec: Spec, level: str, weights: str) -> None:
    ids, positions = _given(length=12)
    engine = Engine(spec, weights)
    whole = begin(engine, 3).extend(ids, positions, None, 12)
    by_steps, alone = begin(engine, 3), begin(engine, 1, torch.tensor([2]))
    for i in range(12):
        assert torch.equal(by_steps.step(ids[:, i], positions[:, i]), whole[:, i])
    assert torch.equal(alone.extend(ids[2:], positions[2:], None, 12)[0], whole[2])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(begin(engine, 3).extend(ids, positions, None, 12), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_smaller_weights_are_what_they_are_rounded_to_on_every_level(spec: Spec, level: str, weights: str) -> None:
    ids, positions = _given()
    exact = exact_logits(mapped(rounded_to(spec, weights), Tensor.double), ids, positions)
    found = begin(Engine(spec, weights), 3).extend(ids, positions, None, LENGTH)
    # What is left is what activations are rounded to.
    assert norm_of_error(found, exact) < {"bf16": 2e-6, "int8": 0.04, "int4": 0.04}[weights]


def test_hidden_tokens_are_not_seen(spec: Spec) -> None:
    ids, positions = _given(3, 20)
    visible = torch.rand(3, 20) > 0.3
    visible[:, 0] = torch.tensor([True, False, False])
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions, visible)
    state = begin(Engine(spec, "fp32"), 3)
    found = [state.extend(ids[:, :17], positions[:, :17], visible[:, :17], 3)]
    found += [state.extend(ids[:, 17:], positions[:, 17:], visible[:, 17:], 3)]
    assert norm_of_error(torch.cat(found, 1), exact[:, 14:]) < 2e-6


def test_sequences_part_and_go_back(spec: Spec) -> None:
    ids, positions = _given(4, 30)
    ids[:, :10] = ids[:1, :10]
    ids[2:, :10] = ids[2:3, :10] + 0
    engine = Engine(spec, "fp32")
    state = begin(engine, 4)
    state.extend(ids[:, :10], positions[:, :10], None, 1)
    for i in range(10, 20):
        state.step(ids[:, i], positions[:, i])
    parents = torch.tensor([3, 0, 0, 1])
    state.reorder(parents)
    found = state.step(ids[:, 20], positions[:, 20])
    history = torch.cat([ids[parents, :20], ids[:, 20:21]], 1)
    plain = begin(engine, 4, parents).extend(history, positions[:, :21], None, 1)[:, 0]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    state.crop(15)
    assert state.length == 15
    again = state.step(history[:, 15], positions[:, 15])
    plain = begin(engine, 4, parents).extend(history[:, :16], positions[:, :16], None, 1)[:, 0]
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


def test_sequences_that_share_a_past_give_the_bits_of_each_alone_on_every_level(spec: Spec, level: str) -> None:
    count, rows = 14, 6
    ids, positions = _given(rows, count)
    engine, sources = Engine(spec, "fp32"), torch.ones(rows, dtype=torch.int64)
    state, history = begin(engine, rows, sources), ids[:, :0]
    for i in range(count):
        if i in (4, 9, 11):
            parents = torch.tensor([1, 1, 0, 4, 4, 4])
            state.reorder(parents)
            history = history[parents]
        found, history = state.step(ids[:, i], positions[:, i]), torch.cat([history, ids[:, i : i + 1]], 1)
    for row in range(rows):
        alone = begin(engine, 1, sources[:1])
        last = [alone.step(history[row, i : i + 1], positions[0, i : i + 1]) for i in range(count)][-1]
        assert torch.equal(found[row], last[0])


def test_keys_and_values_go_out_and_in(spec: Spec, level: str) -> None:
    ids, positions = _given(2, 25)
    visible = torch.ones(2, 25, dtype=torch.bool)
    visible[1, :4] = False
    engine = Engine(spec, "fp32")
    state = begin(engine, 2)
    state.extend(ids[:, :24], positions[:, :24], visible[:, :24], 1)
    layers = state.export()
    assert layers[0][0].shape == (2, spec.kv_heads, 24, spec.head_size)
    assert not layers[0][0][1, :, :4].any()
    other = begin(engine, 2)
    other.load(layers, visible[:, :24])
    wanted, found = (each.step(ids[:, 24], positions[:, 24]) for each in (state, other))
    assert torch.equal(wanted, found)
    assert state.nbytes > 0


def _of_torch(model: nn.TransformerDecoder, embedding: Tensor, positions: Tensor, bias: Tensor) -> Spec:
    """PyTorch's decoder between an embedding and a head that is the same."""

    def both(module: nn.Module) -> tuple[Tensor, Tensor]:
        return module.weight, module.bias

    def split(attention: nn.MultiheadAttention) -> tuple[Linear, ...]:
        return tuple(map(Linear, attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)))

    first = model.layers[0]
    size = first.self_attn.head_dim
    layers = tuple(
        Layer(
            Norm(*both(layer.norm1)),
            Norm(*both(layer.norm3)),
            split(layer.self_attn),
            Linear(*both(layer.self_attn.out_proj)),
            Linear(*both(layer.linear1)),
            None,
            Linear(*both(layer.linear2)),
            size**-0.5,
            Cross(
                Norm(*both(layer.norm2)),
                split(layer.multihead_attn)[0],
                split(layer.multihead_attn)[1:],
                Linear(*both(layer.multihead_attn.out_proj)),
                size**-0.5,
            ),
        )
        for layer in model.layers
    )
    heads, hidden = first.self_attn.num_heads, embedding.shape[1]
    last = None if model.norm is None else Norm(*both(model.norm))
    rest = last, Linear(embedding, bias), heads, heads, size, first.norm1.eps, "LAYER_NORM", "RELU"
    order = "BEFORE" if first.norm_first else "AFTER"
    return Spec(embedding, positions, None, 1.0, layers, *rest, order, hidden**0.5)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("has_last_norm", [True, False])
@torch.no_grad()
def test_pytorchs_decoder_gives_the_same_on_every_level(level: str, norm_first: bool, has_last_norm: bool) -> None:
    torch.manual_seed(1)
    hidden, rows, beams, count = 48, 3, 4, 21
    layer = nn.TransformerDecoderLayer(hidden, 4, 80, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(hidden) if has_last_norm else None
    model = nn.TransformerDecoder(layer, 2, norm).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    embedding, table, bias = (
        random_numbers(VOCABULARY, hidden, scale=hidden**-0.5),
        random_numbers(POSITIONS, hidden),
        random_numbers(131),
    )
    encoded, lengths = random_numbers(rows, 19, hidden), torch.tensor([19, 1, 8])

    def logits(ids: Tensor) -> Tensor:
        """Of beams by PyTorch, with all tokens at once."""
        x = TF.embedding(ids, embedding) * hidden**0.5 + table[: ids.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        hides = torch.arange(19) >= lengths.repeat_interleave(beams)[:, None]
        memory = encoded.repeat_interleave(beams, 0)
        found = model(x, memory, mask, memory_key_padding_mask=hides, tgt_is_causal=True)
        return TF.linear(found, embedding, bias)

    engine = Engine(_of_torch(model, embedding, table, bias), "fp32")
    memory = engine.remember(encoded, lengths)
    assert memory.nbytes >= 4 * 2 * 2 * hidden * int(lengths.sum())
    state = engine.begin(rows * beams, memory)
    ids = torch.zeros(rows * beams, 1, dtype=torch.int64)
    for i in range(count):
        wanted, found = logits(ids)[:, -1], state.step(ids[:, -1], torch.tensor([i]))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        # Beams go on from others of their row.
        parents = (torch.randint(beams, (rows, beams)) + torch.arange(rows)[:, None] * beams).view(-1)
        state.reorder(parents)
        ids = torch.cat([ids[parents], torch.randint(VOCABULARY, (rows * beams, 1))], 1)
    whole = engine.begin(rows * beams, memory).extend(ids, torch.arange(count + 1).expand(ids.shape), None, 2)
    torch.testing.assert_close(whole, logits(ids)[:, -2:], rtol=1e-4, atol=1e-4)


def test_long_memories_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["paper"]()
    ids, positions = _given(8, 3)
    engine = Engine(spec, "fp32")
    whole = begin(engine, 8).extend(ids, positions, None, 3)
    monkeypatch.setattr("aigc_fast.ops.decode.engine.MOST_TOKENS", 37)
    torch.testing.assert_close(begin(engine, 8).extend(ids, positions, None, 3), whole, rtol=1e-4, atol=1e-5)
    half = engine.remember(encoded_rows(64).bfloat16(), LENGTHS.int())
    assert norm_of_error(engine.begin(8, half).extend(ids, positions, None, 3), whole.double()) < 0.02


def test_bad_memories() -> None:
    spec, alone = SPECS["paper"](), SPECS["gpt2"]()
    engine = Engine(spec, "fp32")
    encoded = encoded_rows(64)
    memory = engine.remember(encoded)
    with pytest.raises(ValueError, match="memory=None: expected what `remember` gave"):
        engine.begin(8)
    with pytest.raises(ValueError, match="expected a decoder that attends to one"):
        Engine(alone, "fp32").begin(8, memory)
    with pytest.raises(ValueError, match="attends to no memory"):
        Engine(alone, "fp32").remember(encoded)
    with pytest.raises(ValueError, match="one of this engine"):
        Engine(spec, "fp32").begin(8, memory)
    with pytest.raises(ValueError, match="slots=12: expected a multiple of the memory's 8 rows"):
        engine.begin(12, memory)
    for sources, error in ((torch.tensor([8]), "sources: expected 0 to 7, got 8 to 8"), (torch.zeros(2), "integers")):
        with pytest.raises((ValueError, TypeError), match=error):
            engine.begin(1, memory, sources)
    for bad, error in ((encoded[..., :63], r"expected \(rows, length, 64\)"), (encoded.long(), "a floating dtype")):
        with pytest.raises((ValueError, TypeError), match=error):
            engine.remember(bad)
    for lengths, error in (
        (LENGTHS + 1, "lengths: expected 0 to 140, got 1 to 141"),
        (LENGTHS[1:], r"expected \(8,\)"),
    ):
        with pytest.raises(ValueError, match=error):
            engine.remember(encoded, lengths)
    first, second = spec.layers
    for bad_spec in (
        spec._replace(layers=(first, second._replace(cross=None))),
        spec._replace(order="PARALLEL"),
    ):
        with pytest.raises(ValueError, match="expected"):
            Engine(bad_spec, "fp32")
    nothing = engine.remember(encoded[:, :0])
    assert engine.begin(8, nothing).step(torch.zeros(8, dtype=torch.int64), torch.tensor([0])).isfinite().all()


def test_long_prompts_in_parts(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = _given(2, 40)
    engine = Engine(spec, "fp32")
    whole = begin(engine, 2).extend(ids, positions, None, 6)
    monkeypatch.setattr("aigc_fast.ops.decode.engine.MOST_TOKENS", 13)
    parts = begin(engine, 2).extend(ids, positions, None, 6)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_what_is_not_finite_shows_on_every_level(spec: Spec, level: str) -> None:
    spec = spec._replace(embedding=spec.embedding.clone())  # the head may be the same
    spec.embedding[7] = torch.nan
    ids, positions = _given(2, 3)
    ids[0], ids[1] = 5, 7
    for weights in WEIGHTS:
        found = begin(Engine(spec, weights), 2).extend(ids, positions, None, 1)
        assert found[0].isfinite().all()
        assert found[1].isnan().all()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_greedy_tokens_are_the_logits_greatest_on_every_level(spec: Spec, level: str, rows: int) -> None:
    spec = spec._replace(head=Linear(random_numbers(1500, spec.embedding.shape[1])))
    # Some columns are alike, so that the first of equal ones is wanted.
    spec.head.weight[900:] = spec.head.weight[:600]
    engine = Engine(spec, "fp32")
    assert engine.certify(spec)
    assert engine.nbytes > Engine(spec, "fp32").nbytes
    ids, positions = _given(rows, 20)
    none = torch.empty(0, dtype=torch.int64)
    plain, sure, banning = (begin(engine, rows) for _ in range(3))
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
    weight = random_numbers(40, spec.embedding.shape[1])
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


@pytest.mark.parametrize("vocabulary", [3, 16, 130, 1037])
@pytest.mark.parametrize("beams", [1, 5])
def test_the_best_continuations_are_those_of_all_on_every_level(level: str, vocabulary: int, beams: int) -> None:
    torch.manual_seed(vocabulary)
    prompts, count = 3, min(2 * beams, beams * vocabulary)
    logits, scores = 4 * random_numbers(prompts * beams, vocabulary), random_numbers(prompts, beams)
    scores[0, 1:] = -1e9
    banned = torch.stack([torch.randint(prompts * beams, (9,)), torch.randint(vocabulary - 1, (9,))])
    logarithms = logits.double().log_softmax(-1)
    logarithms[banned[0], banned[1]] = -torch.inf
    all_sums = (logarithms.view(prompts, beams, -1) + scores.double()[:, :, None]).flatten(1)
    sums, places = best_continuations(logits.clone(), scores, count, banned)
    torch.testing.assert_close(sums, all_sums.topk(count).values.float(), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(all_sums.gather(1, places).float(), sums, rtol=1e-6, atol=1e-5)
    assert all(len(set(row)) == count for row in places.tolist())
    # Of equals the first ones, and what is not finite as PyTorch has it.
    nothing = torch.empty(2, 0, dtype=torch.int64)
    _, places = best_continuations(torch.zeros_like(logits), torch.zeros_like(scores), count, nothing)
    assert places.tolist() == [list(range(count))] * prompts
    logits[0, 1] = torch.nan
    assert best_continuations(logits, scores, count, nothing)[0][0, 0].isnan()


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("ends", [[], [1], [1, 2]])
def test_hypotheses_are_followed_and_kept_as_pytorch_has_them_on_every_level(
    level: str, ends: list[int], length_penalty: float, early_stopping: bool | str
) -> None:
    for prompts, beams, prompt, new in ((1, 1, 1, 3), (2, 3, 2, 9), (3, 4, 1, 6), (1, 5, 3, 7)):
        vocabulary = 9
        ids = torch.randint(3, vocabulary, (prompts, prompt)).repeat_interleave(beams, 0)
        given = ids, beams, prompt + new, ends, -1, length_penalty, early_stopping
        found, expected = Hypotheses(*given), Hypotheses(*given)
        for _ in range(new):
            logarithms = (2 * random_numbers(prompts, beams, vocabulary)).log_softmax(-1)
            best, places = (logarithms + expected.running_scores[:, :, None]).flatten(1).topk(expected.kept)
            goes_on = found.advance(best, places, vocabulary)
            with backend("reference"):
                assert expected.advance(best, places, vocabulary) == goes_on
            _same(found, expected)
            if not goes_on:
                break


def _same(found: Hypotheses, expected: Hypotheses) -> None:
    """Of those that are out of question the order says nothing."""
    follows, ended = expected.running_scores > -1e8, expected.is_ended
    for name in ("running_scores", "scores", "is_ended"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.running[follows], expected.running[follows])
    assert torch.equal(found.origins[:, follows.view(-1)], expected.origins[:, follows.view(-1)])
    assert torch.equal(found.ended[ended], expected.ended[ended])
    assert torch.equal(found.lengths[ended], expected.lengths[ended])


def test_bad_ids_and_positions(spec: Spec) -> None:
    state = begin(Engine(spec, "fp32"), 1)
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


@pytest.mark.parametrize(("layers", "first"), [(1, 0), (2, 0), (3, 0), (12, 1), (24, 4), (30, 10), (32, 10), (48, 16)])
def test_the_first_layers_of_deep_decoders_and_the_head_are_int8_where_others_are_int4(layers: int, first: int) -> None:
    kernels, codes = native.kernels(), WEIGHT_CODES
    kept = [kernels.decode_kept_as(codes["int4"], index, layers) for index in range(layers + 1)]
    assert kept == [codes["int8"]] * first + [codes["int4"]] * (layers - first) + [codes["int8"]]
    for weights in ("fp32", "bf16", "int8"):
        assert {kernels.decode_kept_as(codes[weights], index, layers) for index in range(layers + 1)} == {
            codes[weights]
        }


@pytest.mark.parametrize("memory", [0, 40])
def test_a_deep_decoder_by_int4_runs_its_first_layer_by_int8(level: str, memory: int) -> None:
    spec = make_spec(48, 3, 3, 16, 64, memory=memory)
    spec = spec._replace(layers=spec.layers * 6)
    ids, positions = _given(1, 9)

    def rounded(part: Any, by: Callable[[Tensor], Tensor]) -> Any:
        return mapped(part, lambda tensor: by(tensor) if tensor.dim() == 2 else tensor)

    head = spec.head._replace(weight=fake_bytes(spec.head.weight))
    found = begin(Engine(spec, "int4"), 1).extend(ids, positions, None, 9)
    errors = []
    for first in (0, 1, 2):
        layers = [rounded(layer, fake_bytes if i < first else fake_nibbles) for i, layer in enumerate(spec.layers)]
        same = spec._replace(layers=tuple(layers), head=head)
        errors.append(norm_of_error(found, exact_logits(mapped(same, Tensor.double), ids, positions)))
    assert 2 * errors[1] < min(errors[0], errors[2])
