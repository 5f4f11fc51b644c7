"""The CUDA engine of decoders, as the CPU emulates its kernels: against plain PyTorch, the CPU's engine and itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from decoder_specs import (
    LENGTHS,
    SPECS,
    VOCABULARY,
    begin,
    encoded_rows,
    exact_logits,
    make_spec,
    mapped,
    norm_of_error,
    rounded_to,
)
from places import EMULATOR, Place
from placing import OnCard
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from watching import launches

import aigc_fast
from aigc_fast.models import GPT2, DecoderModel, IdTokenizer, Llama, Seq2SeqTransformer
from aigc_fast.ops.decode import choice, cuda, packing
from aigc_fast.ops.decode.cuda import LEAST_ROOM, CudaEngine, CudaState
from aigc_fast.ops.decode.engine import Engine, digest_on_device
from aigc_fast.ops.decode.reading import Refused
from aigc_fast.ops.decode.spec import Spec
from aigc_fast.runtime import native
from aigc_fast.runtime.weights import WEIGHTS

needs_emulation = pytest.mark.skipif(
    not native.is_emulated or native.cuda is None or native.cpu_reason() is not None,
    reason="AIGC_FAST_CUDA_HOST=1 is not set",
)
IN_ORDERS = pytest.mark.parametrize("place", EMULATOR, ids=str)


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> Spec:
    return made(request.param)


@pytest.fixture
def in_emulation() -> Iterator[None]:
    with EMULATOR[-1].in_force():
        yield


def made(name: str) -> Spec:
    torch.manual_seed(3)
    return SPECS[name]()


def given(rows: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randint(VOCABULARY, (rows, length)), torch.arange(length).expand(rows, length)


def stepped(state: CudaState, ids: Tensor, positions: Tensor) -> Tensor:
    """The logits of all steps, (slots, count, vocabulary)."""
    return torch.stack([state.step(ids[:, i], positions[:, i]) for i in range(ids.shape[1])], 1)


class Copies(TorchDispatchMode):
    """How many tokens of a cache are copied in the block, each time."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default and args[0].dim() == 6:
            self.lengths.append(args[0].shape[4])
        return func(*args, **(kwargs or {}))


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("name", SPECS)
def test_emulated_float32_is_as_exact_as_pytorchs(name: str, place: Place) -> None:
    spec, (ids, positions) = made(name), given(2, 5)
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions)
    least = 2 * norm_of_error(exact_logits(spec, ids, positions), exact) + 1e-7
    with place.in_force():
        engine = CudaEngine(spec, "fp32")
        assert norm_of_error(stepped(begin(engine, 2), ids, positions), exact) < least
        assert norm_of_error(begin(engine, 2).extend(ids, positions, None, 5), exact) < least


@needs_emulation
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_emulated_smaller_weights_are_what_they_are_rounded_to(spec: Spec, weights: str, in_emulation: None) -> None:
    (ids, positions), engine = given(2, 3), CudaEngine(spec, weights)
    kept = spec._replace(layers=tuple(map(engine.layer, range(2))), head=engine.head())
    exact, alike = (
        exact_logits(mapped(same, Tensor.double), ids, positions) for same in (kept, rounded_to(spec, weights))
    )
    # Activations are not rounded.
    assert norm_of_error(stepped(begin(engine, 2), ids, positions), exact) < 2e-6
    assert norm_of_error(begin(engine, 2).extend(ids, positions, None, 3), exact) < 2e-6
    # But for what is halfway between two steps of int8.
    assert norm_of_error(exact, alike) < 1e-3
    assert engine.nbytes < CudaEngine(spec, "fp32").nbytes * {"bf16": 0.6, "int8": 0.5, "int4": 0.4}[weights]


@needs_emulation
@pytest.mark.parametrize("weights", WEIGHTS)
def test_emulated_rows_are_the_same_bits_alone_and_among_others(weights: str) -> None:
    spec, (ids, positions) = made("llama-odd"), given(11, 2)
    found = []
    for place, rows in zip((*EMULATOR, EMULATOR[0], EMULATOR[1]), (1, 2, 3, 6, 11), strict=True):
        with place.in_force():
            found.append(stepped(begin(CudaEngine(spec, weights), rows), ids[:rows], positions[:rows]))
    assert all(torch.equal(other[0], found[0][0]) for other in found[1:])
    assert torch.equal(found[3], found[4][:6])


@needs_emulation
def test_emulated_rows_that_are_longer_than_is_in_shared_memory(in_emulation: None) -> None:
    spec, (ids, positions) = make_spec(16, 1, 1, 8, 8300, activation="RELU"), given(3, 1)
    for weights, rows in (("fp32", 1), ("int4", 3)):
        engine = CudaEngine(spec, weights)
        kept = spec._replace(layers=tuple(map(engine.layer, range(2))), head=engine.head())
        exact = exact_logits(mapped(kept, Tensor.double), ids[:rows], positions[:rows])[:, 0]
        assert norm_of_error(begin(engine, rows).step(ids[:rows, 0], positions[:rows, 0]), exact) < 2e-6


@needs_emulation
def test_emulated_replays_are_the_steps_that_follow(spec: Spec, in_emulation: None, monkeypatch: Any) -> None:
    """What a captured graph does: the same launches, with ids and positions that were written before."""
    ids, positions = given(1, 4)
    engine = CudaEngine(spec, "fp32")
    state, told = begin(engine, 1), []
    wanted = stepped(begin(engine, 1), ids, positions)
    run = native.cuda.decode_step
    monkeypatch.setattr(native.cuda, "decode_step", lambda *args: told.append(args) or run(*args))
    state.step(ids[:, 0], positions[:, 0])
    monkeypatch.setattr(torch, "empty", None)  # nothing is allocated
    for i in range(1, 4):
        state._ids.copy_(ids[:, i])
        state._positions.copy_(positions[:, i])
        run(*told[0])
        assert torch.equal(state._logits, wanted[:, i])
    assert state._lengths.tolist() == [4, 5]


@needs_emulation
def test_emulated_room_grows(in_emulation: None) -> None:
    spec, (ids, positions) = made("llama-odd"), given(1, LEAST_ROOM + 2)
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions)
    state = begin(CudaEngine(spec, "fp32"), 1)
    state.extend(ids[:, : LEAST_ROOM - 1], positions[:, : LEAST_ROOM - 1], None, 1)
    assert state.room == LEAST_ROOM
    found = stepped(state, ids[:, LEAST_ROOM - 1 :], positions[:, LEAST_ROOM - 1 :])
    assert state.room == 2 * LEAST_ROOM
    assert norm_of_error(found, exact[:, LEAST_ROOM - 1 :]) < 1e-6
    assert state.nbytes == 2 * 4 * 2 * 13 * 2 * LEAST_ROOM


@needs_emulation
def test_emulated_steps_beyond_the_room_write_nothing(in_emulation: None) -> None:
    engine, (ids, positions) = CudaEngine(made("gpt2"), "fp32"), given(1, 1)
    state = begin(engine, 1)
    state.step(ids[:, 0], positions[:, 0])
    state._set_length(state.room)
    before = state._cache.clone()
    state.replay()
    assert torch.equal(state._cache, before)


@needs_emulation
def test_emulated_hidden_tokens_are_not_seen(spec: Spec, in_emulation: None) -> None:
    ids, positions = given(3, 20)
    visible = torch.rand(3, 20) > 0.3
    visible[:, 0] = torch.tensor([True, False, False])
    visible[:, 17:] = True
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions, visible)
    state = begin(CudaEngine(spec, "fp32"), 3)
    found = [state.extend(ids[:, :9], positions[:, :9], visible[:, :9], 3)]
    found += [state.extend(ids[:, 9:17], positions[:, 9:17], visible[:, 9:17], 8)]
    found += [stepped(state, ids[:, 17:], positions[:, 17:])]
    assert norm_of_error(torch.cat(found, 1), exact[:, 6:]) < 2e-6


@needs_emulation
def test_emulated_long_prompts_in_parts(spec: Spec, in_emulation: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, positions = given(2, 40)
    engine = CudaEngine(spec, "fp32")
    whole = begin(engine, 2).extend(ids, positions, None, 19)
    monkeypatch.setattr("aigc_fast.ops.decode.cuda.MOST_TOKENS", 13)
    parts = begin(engine, 2).extend(ids, positions, None, 19)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@needs_emulation
@pytest.mark.parametrize("name", ["gpt2-odd", "mistral", "paper"])
def test_emulated_sequences_part_and_go_back(name: str, in_emulation: None) -> None:
    spec, (ids, positions) = made(name), given(4, 15)
    engine = CudaEngine(spec, "fp32")
    state = begin(engine, 4)
    state.extend(ids[:, :10], positions[:, :10], None, 1)
    stepped(state, ids[:, 10:14], positions[:, 10:14])
    parents = torch.tensor([3, 0, 0, 1])
    state.reorder(parents)
    found = state.step(ids[:, 14], positions[:, 14])
    history = torch.cat([ids[parents, :14], ids[:, 14:15]], 1)
    plain = begin(engine, 4, parents).extend(history, positions[:, :15], None, 1)[:, 0]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    state.crop(12)
    assert state.length == 12
    again = state.step(history[:, 12], positions[:, 12])
    plain = begin(engine, 4, parents).extend(history[:, :13], positions[:, :13], None, 1)[:, 0]
    torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


@needs_emulation
def test_emulated_sequences_that_part_late_are_copied_from_there(in_emulation: None) -> None:
    spec, (ids, positions) = made("llama-odd"), given(4, 9)
    engine = CudaEngine(spec, "fp32")
    state = begin(engine, 4)

    def copied(parents: list[int]) -> list[int]:
        """Tokens of every sequence that are copied."""
        with Copies() as copies:
            state.reorder(torch.tensor(parents))
        return copies.lengths

    state.extend(ids[:, :4], positions[:, :4], None, 1)
    assert copied([0, 1, 2, 3]) == []
    assert copied([2, 2, 2, 2]) == [4]
    assert copied([3, 1, 0, 2]) == []
    stepped(state, ids[:, 4:6], positions[:, 4:6])
    assert copied([1, 1, 3, 2]) == [2]
    assert copied([1, 0, 3, 3]) == [2]
    state.crop(5)
    state.step(ids[:, 5], positions[:, 5])
    assert copied([1, 0, 3, 2]) == [1]
    found = state.step(ids[:, 6], positions[:, 6])
    # Before the fifth token all are the third row's.
    history = torch.cat([ids[[2] * 4, :4], ids[[1, 1, 2, 2], 4:5], ids[[1, 0, 3, 2], 5:6], ids[:, 6:7]], 1)
    plain = begin(engine, 4).extend(history, positions[:, :7], None, 1)[:, 0]
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


@needs_emulation
def test_emulated_keys_and_values_go_out_and_in(spec: Spec, in_emulation: None) -> None:
    ids, positions = given(2, 25)
    visible = torch.ones(2, 25, dtype=torch.bool)
    visible[1, :4] = False
    engine = CudaEngine(spec, "fp32")
    state = begin(engine, 2)
    state.extend(ids[:, :24], positions[:, :24], visible[:, :24], 1)
    layers = state.export()
    assert layers[0][0].shape == (2, spec.kv_heads, 24, spec.head_size)
    assert not layers[0][0][1, :, :4].any()
    other, plain = begin(engine, 2), begin(Engine(spec, "fp32"), 2)
    for each in (other, plain):
        each.load(layers, visible[:, :24])
    wanted = state.step(ids[:, 24], positions[:, 24])
    assert torch.equal(wanted, other.step(ids[:, 24], positions[:, 24]))
    torch.testing.assert_close(wanted, plain.step(ids[:, 24], positions[:, 24]), rtol=1e-4, atol=1e-5)


@needs_emulation
def test_emulated_greedy_tokens_leave_out_what_is_banned(in_emulation: None) -> None:
    engine, (ids, positions) = CudaEngine(made("gpt2"), "fp32"), given(3, 1)
    logits = begin(engine, 3).step(ids[:, 0], positions[:, 0])
    banned = logits.argmax(-1).unique()
    found = begin(engine, 3).greedy(ids[:, 0], positions[:, 0], banned)
    assert torch.equal(found, logits.index_fill(1, banned, -torch.inf).argmax(-1))


@needs_emulation
def test_emulated_far_positions_are_turned_by_as_much(in_emulation: None) -> None:
    spec = make_spec(24, 2, 1, 8, 16, rotated=8, bias=False)
    spec = spec._replace(frequencies=torch.tensor([1.0, 0.7, 0.01, 1e-4]))
    for position in (1, 3, 50_000, 1_000_003):
        ids, positions = given(1, 2)[0], torch.tensor([[position, position + 1]])
        wanted = exact_logits(spec, ids, positions)
        found = stepped(begin(CudaEngine(spec, "fp32"), 1), ids, positions)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@needs_emulation
@pytest.mark.parametrize("name", ["gpt2-odd", "llama-odd"])
def test_emulated_numbers_that_are_not_finite_show(name: str, in_emulation: None) -> None:
    spec = made(name)
    spec = spec._replace(embedding=spec.embedding.clone())  # the head may be the same
    spec.embedding[7] = torch.nan
    for weights in WEIGHTS:
        engine = CudaEngine(spec, weights)
        for found in (
            begin(engine, 2).step(torch.tensor([5, 7]), torch.tensor([0])),
            begin(engine, 2).extend(torch.tensor([[5, 5], [5, 7]]), torch.tensor([[0, 1]] * 2), None, 1)[:, 0],
        ):
            assert found[0].isfinite().all()
            assert found[1].isnan().all()


@needs_emulation
@pytest.mark.parametrize("name", ["gpt2-odd", "llama-odd"])
def test_emulated_ids_and_positions_that_are_none(name: str, in_emulation: None) -> None:
    engine = CudaEngine(made(name), "fp32")
    # A step does not wait for the device to tell.
    found = begin(engine, 4).step(torch.tensor([-1, VOCABULARY, 3, 3]), torch.tensor([0, 0, -1, 2]))
    assert found[:3].isnan().all()
    assert found[3].isfinite().all()
    state = begin(engine, 1)
    for ids, positions in (([[3, VOCABULARY]], [[0, 1]]), ([[-1, 3]], [[0, 1]]), ([[3, 3]], [[0, -1]])):
        with pytest.raises(IndexError, match="index out of range in self"):
            state.extend(torch.tensor(ids), torch.tensor(positions), None, 1)
    assert state.length == 0


@needs_emulation
def test_emulated_arguments_that_do_not_fit_are_named_before_anything_runs(in_emulation: None) -> None:
    state, (ids, positions) = begin(CudaEngine(made("gpt2-odd"), "fp32"), 2), given(2, 3)
    bad = {
        (ids[:1, 0], positions[:, 0]): r"ids: expected \(2,\), got \(1,\)",
        (ids[:, 0].int(), positions[:, 0]): "ids: expected torch.int64 on cpu, got torch.int32 on cpu",
        (ids[:, 0].to("meta"), positions[:, 0]): "ids: expected torch.int64 on cpu, got torch.int64 on meta",
        (ids[:, 0], torch.zeros(3)): r"positions: expected \(\d,\) or \(\d,\), got \(3,\)",
        (ids[:, 0], positions[:, 0].float()): "positions: expected torch.int64 on cpu, got torch.float32",
    }
    with launches("cuda:decode_step") as launched:
        for given_wrong, message in bad.items():
            with pytest.raises((ValueError, TypeError), match=message):
                state.step(*given_wrong)
        with pytest.raises(ValueError, match=r"ids: expected \(2, 3\), got \(1, 3\)"):
            state.extend(ids[:1], positions, None, 1)
        with pytest.raises(TypeError, match=r"visible: expected torch.bool on cpu, got torch.int64 on cpu"):
            state.extend(ids, positions, torch.ones_like(ids), 1)
    assert not launched
    assert state.length == 0


@needs_emulation
@pytest.mark.parametrize("name", ["gpt2-odd", "llama-odd"])
def test_emulated_tables_and_weights_of_other_dtypes(name: str, in_emulation: None) -> None:
    spec, (ids, positions) = made(name), given(1, 3)
    for dtype in (torch.bfloat16, torch.float16):
        small = mapped(spec, lambda tensor, dtype=dtype: tensor.to(dtype))._replace(frequencies=spec.frequencies)
        exact = exact_logits(mapped(small, Tensor.double), ids, positions)
        engine = CudaEngine(small, "bf16" if dtype == torch.bfloat16 else "fp32")
        assert norm_of_error(stepped(begin(engine, 1), ids, positions), exact) < 2e-6
        assert norm_of_error(begin(engine, 1).extend(ids, positions, None, 3), exact) < 2e-6


@needs_emulation
def test_emulated_decoders_that_are_refused(in_emulation: None) -> None:
    assert "heads of 257 numbers" in cuda.unsupported(make_spec(16, 1, 1, 257, 16))
    meta = mapped(made("gpt2"), lambda tensor: tensor.to("meta"))
    assert cuda.unsupported(meta) == "the tensors are on meta"
    mixed = made("gpt2")._replace(embedding=meta.embedding)
    assert "meta and cpu" in cuda.unsupported(mixed)


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("name", ["paper", "paper-odd", "to-memory"])
def test_emulated_beams_attend_to_their_rows_memory(name: str, place: Place) -> None:
    spec, (ids, positions) = made(name), given(6, 4)
    encoded, lengths = encoded_rows(spec.layers[0].cross.projections[0].weight.shape[1])[:3, :40], LENGTHS[:3] % 40
    # What is not there may be anything.
    encoded = encoded.clone()
    encoded[0, 9:] = torch.nan
    whole = Engine(spec, "fp32")
    plain = whole.begin(6, whole.remember(encoded, lengths))
    with place.in_force():
        engine = CudaEngine(spec, "fp32")
        memory = engine.remember(encoded, lengths)
        assert memory.nbytes == 4 * 2 * 2 * 3 * spec.kv_heads * 40 * spec.head_size
        state = engine.begin(6, memory)
        for i, parents in enumerate(([1, 1, 2, 3, 5, 4], [0, 5, 3, 3, 0, 1], [0, 1, 2, 3, 4, 5])):
            found = state.step(ids[:, i], positions[:, i])
            torch.testing.assert_close(found, plain.step(ids[:, i], positions[:, i]), rtol=1e-4, atol=1e-4)
            state.reorder(torch.tensor(parents))
            plain.reorder(torch.tensor(parents))
        found = state.extend(ids[:, 2:], positions[:, 2:] + 1, None, 2)
    torch.testing.assert_close(found, plain.extend(ids[:, 2:], positions[:, 2:] + 1, None, 2), rtol=1e-4, atol=1e-4)


@needs_emulation
def test_emulated_memories_of_nothing(in_emulation: None) -> None:
    spec, (ids, positions) = made("paper"), given(2, 2)
    exact = exact_logits(mapped(spec, Tensor.double), ids, positions, encoded=torch.zeros(2, 0, 64).double())
    engine = CudaEngine(spec, "fp32")
    state = engine.begin(2, engine.remember(torch.zeros(2, 0, 64)))
    assert norm_of_error(stepped(state, ids, positions), exact) < 1e-6


@needs_emulation
def test_emulated_bad_memories(in_emulation: None) -> None:
    spec, alone = made("paper"), CudaEngine(made("gpt2"), "fp32")
    engine, encoded = CudaEngine(spec, "fp32"), encoded_rows(64)
    memory = engine.remember(encoded)
    for begun, message in (
        (lambda: engine.begin(8), "memory=None: expected what `remember` gave"),
        (lambda: alone.begin(8, memory), "expected a decoder that attends to one"),
        (lambda: alone.remember(encoded), "attends to no memory"),
        (lambda: CudaEngine(spec, "fp32").begin(8, memory), "one of this engine"),
        (lambda: engine.begin(12, memory), "slots=12: expected a multiple of the memory's 8 rows"),
        (lambda: engine.begin(1, memory, torch.tensor([8])), "sources: expected 0 to 7, got 8 to 8"),
        (lambda: engine.remember(encoded, LENGTHS + 1), "lengths: expected 0 to 140, got 1 to 141"),
        (lambda: engine.remember(encoded.to("meta")), "a floating dtype on the CPU, got torch.float32 on meta"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            begun()


MODELS: dict[str, Any] = {
    "gpt2": (GPT2, {"hidden": 36, "num_heads": 3, "context": 64}),
    "llama": (Llama, {"hidden": 48, "num_heads": 6, "num_kv_heads": 2, "context": 64, "units": 40}),
}


def model_of(name: str) -> DecoderModel:
    """One whose logits are far enough apart for ids to mean something."""
    torch.manual_seed(0)
    kind, settings = MODELS[name]
    model = kind(tokenizer=IdTokenizer(97, 1, 0), num_layers=2, dropout=0.0, **settings).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.12) if parameter.dim() > 1 else parameter.data.add_(0.1)
    return model


@needs_emulation
@IN_ORDERS
@pytest.mark.parametrize("name", MODELS)
def test_emulated_greedy_ids_are_the_cpus(name: str, place: Place) -> None:
    model, ids = model_of(name), torch.randint(3, 97, (1, 5))
    wanted = model.generate(ids, max_new_tokens=6)
    assert model.way.backend == "cpu"
    with place.in_force():
        found = model.generate(ids, max_new_tokens=6)
    assert str(model.way) == "steps on the CUDA engine, fp32 weights"
    assert torch.equal(found, wanted)


@needs_emulation
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"do_sample": True, "top_k": 20, "top_p": 0.9, "seed": 4},
        {"repetition_penalty": 1.3},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_emulated_ids_are_the_cpus_by_every_loop(name: str, options: dict[str, Any], in_emulation: None) -> None:
    model, ids = model_of(name), torch.randint(3, 97, (1 if "prompt_lookup_num_tokens" in options else 2, 5))
    mask = torch.ones_like(ids)
    mask[-1, : 2 if len(ids) > 1 else 0] = 0
    found = model.generate(ids, attention_mask=mask, max_new_tokens=5, **options)
    assert model.way.backend == "cuda"
    with aigc_fast.backend("cpu"):
        assert torch.equal(found, model.generate(ids, attention_mask=mask, max_new_tokens=5, **options))
    assert model.way.backend == "cpu"


@needs_emulation
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "no_repeat_ngram_size": 2},
        {"do_sample": True, "top_k": 20, "top_p": 0.9, "seed": 4},
        {"repetition_penalty": 1.3, "min_new_tokens": 3},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_emulated_loops_mix_no_tensors_of_host_and_card(options: dict[str, Any], in_emulation: None) -> None:
    model, ids = model_of("llama"), torch.randint(3, 97, (1, 5))
    mask = (torch.arange(5) > 1).long()[None]
    with OnCard():
        found = model.generate(ids, attention_mask=mask, max_new_tokens=5, **options)
    assert model.way.backend == "cuda"
    assert torch.equal(found, model.generate(ids, attention_mask=mask, max_new_tokens=5, **options))


def test_tensors_of_host_and_card_are_told_apart() -> None:
    there = torch.ones(3)
    with OnCard():
        here = torch.arange(3)
        found = there[here] + here.to(there.device) + torch.tensor(1) + torch.ones(3, device="cpu")
        for mixed in (lambda: there + here, lambda: torch.cat([here, there]), lambda: there * there.cpu()):
            with pytest.raises(RuntimeError, match="tensors of the host and of a card"):
                mixed()
    assert torch.equal(found, torch.arange(3.0, 6.0))


@needs_emulation
@pytest.mark.parametrize("norm_first", [False, True])
def test_emulated_answers_are_the_cpus(norm_first: bool) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 48, "nhead": 4, "num_encoder_layers": 1, "num_decoder_layers": 2, "dim_feedforward": 60}
    model = Seq2SeqTransformer(tokenizer=IdTokenizer(97, 1, 0), **sizes, norm_first=norm_first, max_positions=40).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2) if parameter.dim() > 1 else parameter.data.add_(0.1)
    ids = torch.randint(3, 97, (3, 7))
    call = {"attention_mask": torch.arange(7) < torch.tensor([[7], [2], [5]]), "max_new_tokens": 4}
    for options in ({}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2, "seed": 4}):
        wanted = model.generate(ids, **call, **options)
        with EMULATOR[0].in_force():
            assert torch.equal(model.generate(ids, **call, **options), wanted)
        assert (model.way.backend, model.way.reason) == ("cuda", None)


@needs_emulation
def test_emulated_weights_that_changed_are_packed_anew(in_emulation: None) -> None:
    model, ids = model_of("gpt2"), torch.randint(3, 97, (1, 4))
    model.keep_weights("int4")
    first = model.generate(ids, max_new_tokens=4)
    with torch.no_grad():
        model.head.weight[int(first[0, -1])] *= -3
    model.keep_weights(None)
    found = model.generate(ids, max_new_tokens=4)
    assert model.way.weights == "fp32"
    with aigc_fast.backend("cpu"):
        assert torch.equal(found, model.generate(ids, max_new_tokens=4))


@needs_emulation
def test_emulated_explanations(in_emulation: None) -> None:
    model, ids = model_of("gpt2"), torch.randint(3, 97, (1, 4))
    explained = aigc_fast.explain("decode", model, ids, num_beams=2)
    assert (explained.chosen, explained.reasons["cuda"]) == ("cuda", None)
    assert explained.reasons["cpu"] == "the backend 'cuda' is in force"
    assert explained.detail == "beams on the CUDA engine, fp32 weights"
    with torch.autocast("cpu"):
        explained = aigc_fast.explain("decode", model, ids)
    assert (explained.chosen, explained.reasons["cuda"]) == ("reference", "autocast is on")


def test_explanations_on_the_cpu_say_why_not_cuda() -> None:
    explained = aigc_fast.explain("decode", model_of("gpt2"), torch.randint(3, 97, (1, 4)))
    in_force = "the backend 'auto' is in force" if native.is_emulated else "the weights are on cpu"
    assert explained.reasons["cuda"] == in_force


def test_the_engine_is_the_cpus_unless_cuda_is_asked_for() -> None:
    card, here = torch.device("cuda:0"), torch.device("cpu")
    assert choice.backend_on(here, None) == "cpu"
    with pytest.raises(Refused, match="not measured to be faster on any GPU"):
        choice.backend_on(card, None)
    # PyTorch does not keep weights so.
    assert choice.backend_on(card, "int8") == "cuda"
    with aigc_fast.backend("cuda"):
        assert choice.backend_on(card, None) == choice.backend_on(here, None) == "cuda"
    with aigc_fast.backend("cpu"), pytest.raises(Refused, match="the weights are on cuda:0"):
        choice.backend_on(card, None)
    for forced in ("reference", "triton"):
        with aigc_fast.backend(forced), pytest.raises(Refused, match=f"{forced}' is forced"):
            choice.backend_on(card, "int8")
    with pytest.raises(Refused, match="the weights are on cpu and meta"):
        choice.check(made("gpt2")._replace(positions=torch.ones(3, 96, device="meta")), "cpu")


@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (65, 96)])
@pytest.mark.parametrize("kept", WEIGHTS)
def test_packed_weights_are_unpacked_to_what_they_were_rounded_to(kept: str, shape: tuple[int, int]) -> None:
    weight, bias = torch.randn(shape), torch.randn(shape[0])
    if shape[0] > 1:
        weight[1], weight[2, :32] = 0, 1e-38
    found = packing.pack(weight, kept, bias)
    assert found.data[0].nbytes % 16 == 0
    unpacked, same = found.linear()
    assert same is bias
    bounds = {"fp32": 0.0, "bf16": 2.0**-8, "int8": 1 / 253, "int4": 1 / 8}
    assert ((unpacked - weight).abs().amax(1) <= bounds[kept] * weight.abs().amax(1) + 1e-37).all()
    weight[0, 0] = torch.nan
    assert packing.pack(weight, kept).linear().weight[0, 0].isnan()


def test_a_digest_on_a_device_changes_with_any_element() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.randn(7, 11).to(dtype)
        first = digest_on_device(tensor)
        assert digest_on_device(tensor.clone()) == first
        for i in (0, 5, 21, 76):
            other = tensor.clone()
            other.view(-1)[i] += 1
            assert digest_on_device(other) != first


@pytest.mark.gpu
class TestCard:
    """What the emulation has not: captured graphs, streams, a card's memory."""

    @pytest.fixture(autouse=True)
    def _has_kernels(self) -> Iterator[None]:
        if (reason := native.cuda_reason() or native.cpu_reason()) is not None:
            pytest.skip(reason)
        with aigc_fast.backend("cuda"):
            yield

    @pytest.mark.parametrize("name", MODELS)
    def test_greedy_ids_are_the_cpus(self, name: str) -> None:
        model, ids = model_of(name), torch.randint(3, 97, (2, 5))
        with aigc_fast.backend("cpu"):
            wanted = [model.generate(ids, max_new_tokens=40, num_beams=beams) for beams in (1, 3)]
        model.cuda()
        for beams, each in zip((1, 3), wanted, strict=True):
            assert torch.equal(model.generate(ids.cuda(), max_new_tokens=40, num_beams=beams).cpu(), each)
            assert model.way.backend == "cuda"

    @pytest.mark.parametrize("weights", WEIGHTS)
    @pytest.mark.parametrize("name", SPECS)
    def test_steps_are_replayed_until_there_is_no_room(self, name: str, weights: str) -> None:
        spec = mapped(made(name), Tensor.cuda)
        if spec.positions is not None:
            spec = spec._replace(positions=torch.randn(LEAST_ROOM + 4, spec.embedding.shape[1], device="cuda"))
        engine, (ids, positions) = CudaEngine(spec, weights), given(3, LEAST_ROOM + 4)
        ids, positions, first = ids.cuda(), positions.cuda(), LEAST_ROOM - 4
        state, whole = begin(engine, 3), begin(engine, 3).extend(ids, positions, None, 8)
        state.extend(ids[:, :first], positions[:, :first], None, 1)
        graphs, found = [], []
        for i in range(first, LEAST_ROOM + 4):
            found.append(state.step(ids[:, i], positions[:, i]))
            graphs.append(state._graph)
        assert graphs[0] is graphs[3] is not None
        assert graphs[4] is graphs[7] is not graphs[0]
        torch.testing.assert_close(torch.stack(found, 1), whole, rtol=1e-3, atol=1e-3)

    def test_steps_run_on_the_current_stream(self) -> None:
        engine, (ids, positions) = CudaEngine(mapped(made("llama"), Tensor.cuda), "fp32"), given(2, 6)
        ids, positions = ids.cuda(), positions.cuda()
        wanted, stream = stepped(begin(engine, 2), ids, positions), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            found = stepped(begin(engine, 2), ids, positions)
        torch.cuda.current_stream().wait_stream(stream)
        assert torch.equal(found, wanted)

    def test_weights_that_pytorch_does_not_keep_are_the_engines(self) -> None:
        model, ids = model_of("gpt2").cuda(), torch.randint(3, 97, (1, 5)).cuda()
        with aigc_fast.backend("auto"):
            model.generate(ids, max_new_tokens=3)
            assert "not measured to be faster on any GPU" in model.way.reason
            model.keep_weights("int8")
            model.generate(ids, max_new_tokens=3)
        assert str(model.way) == "steps on the CUDA engine, int8 weights"
