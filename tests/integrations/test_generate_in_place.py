"""transformers' own models after `aigc_fast.optimize`, whose `generate` must give what it gave before."""

from __future__ import annotations

import copy
import importlib
import inspect
import io
import itertools
import pickle
import threading
from typing import Any

import pytest
import torch
from decoders import MAKERS, VOCABULARY, assert_same_ids, decoder, prompts, transformers
from torch import Tensor

import aigc_fast
from aigc_fast.integrations.transformers_decoders import BUILDERS, Refused, spec_of
from aigc_fast.optimize.decoders import FAMILIES as FAMILIES_OF_OPTIMIZE
from aigc_fast.runtime import native

generation = importlib.import_module("aigc_fast.integrations.transformers_generation")
pytestmark = pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))

# Of each kind of layers one, and all.
FAMILIES = "gpt2", "llama"
EVERY_FAMILY = *FAMILIES, "mistral", "qwen2", "gpt_neox"
_FIELDS = transformers.modeling_outputs.CausalLMOutputWithPast.__dataclass_fields__
# Versions differ in when beams end, and ours are the newer ones'.
BEAM_LEVEL = "native loop" if hasattr(transformers.GenerationMixin, "_check_early_stop_heuristic") else "native step"
CACHE = "cache" if "cache" in _FIELDS else "past_key_values"


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """transformers' model and the same one, optimised."""
    model = decoder(request.param)
    return model, aigc_fast.optimize(copy.deepcopy(model))


@pytest.fixture(params=EVERY_FAMILY)
def every_pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """The same of every family that there are builders for."""
    model = decoder(request.param)
    return model, aigc_fast.optimize(copy.deepcopy(model))


def level(model: Any) -> str:
    """How its last call of `generate` ran."""
    return aigc_fast.report(model).decoders[0].note


def check(pair: tuple[Any, Any], ids: Tensor, **kwargs: Any) -> tuple[Any, Any]:
    """Both models' results, with the same ids and, where they are told, the same scores, logits and beams."""
    model, fast = pair
    results = []
    for each in (model, fast):
        # transformers' schedules leave their traces in an assistant.
        own = {name: copy.deepcopy(value) if name == "assistant_model" else value for name, value in kwargs.items()}
        torch.manual_seed(5)
        results.append(each.generate(ids, **own))
    wanted, found = results
    assert "native" in level(fast)
    if isinstance(wanted, Tensor):
        assert_same_ids(model, found, wanted)
        return wanted, found
    assert type(found) is type(wanted)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key == "sequences":
            assert_same_ids(model, found[key], value)
        elif isinstance(value, Tensor) or (isinstance(value, tuple) and isinstance(value[0], Tensor)):
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-4)
    return wanted, found


LEFT_PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1]])
GRID = {
    "greedy": {},
    "beams": {"num_beams": 5},
    "beams-ngram": {"num_beams": 5, "no_repeat_ngram_size": 2},
    "beams-8": {"num_beams": 8, "length_penalty": 2.0},
    "beams-2-stop": {"num_beams": 2, "early_stopping": True},
    "beams-never": {"num_beams": 3, "early_stopping": "never", "length_penalty": -0.5},
    "beams-returns": {"num_beams": 4, "num_return_sequences": 3},
    "ngram": {"no_repeat_ngram_size": 2},
    "penalty": {"repetition_penalty": 1.7},
    "min": {"min_new_tokens": 9, "eos_token_id": [1, 5, 9]},
    "min-length": {"min_length": 14, "num_beams": 2},
    "bad-words": {"bad_words_ids": [[5], [7, 9]]},
    "suppress": {"suppress_tokens": [4, 8, 15], "begin_suppress_tokens": [16]},
    "forced": {"forced_bos_token_id": 6, "forced_eos_token_id": 8},
    "many-ends": {"eos_token_id": list(range(1, 40))},
    "sampling": {"do_sample": True, "top_k": 20},
    "sampling-p": {"do_sample": True, "top_p": 0.7, "temperature": 1.4, "num_return_sequences": 2},
    "sampling-min-p": {"do_sample": True, "min_p": 0.05, "typical_p": 0.9},
    "sampling-beams": {"do_sample": True, "num_beams": 3},
    "scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
    "beam-scores": {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "num_beams": 4},
}


@pytest.mark.parametrize("options", GRID.values(), ids=GRID.keys())
def test_ids_are_transformers(every_pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    check(every_pair, prompts(1, 7), **{"max_new_tokens": 18} | options)


def test_chunked_prompts(every_pair: tuple[Any, Any]) -> None:
    model, fast = every_pair
    options = {"max_new_tokens": 6, "prefill_chunk_size": 3}
    try:
        wanted = model.generate(prompts(1, 7), **options)
    except ValueError as error:  # of 5.0
        pytest.skip(f"this transformers takes no prompts in chunks: {error}")
    assert torch.equal(fast.generate(prompts(1, 7), **options), wanted)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "repetition_penalty": 1.2}, {"do_sample": True}])
def test_left_padding_is_not_seen(every_pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    ids = torch.where(LEFT_PADDED > 0, prompts(3, 7), 2)
    _, found = check(every_pair, ids, attention_mask=LEFT_PADDED, max_new_tokens=12, **options)
    assert found.shape[0] == 3


def test_right_padding_is_what_transformers_makes_of_it(every_pair: tuple[Any, Any]) -> None:
    mask = LEFT_PADDED.flip(1)
    check(every_pair, torch.where(mask > 0, prompts(3, 7), 2), attention_mask=mask, max_new_tokens=9)


@pytest.mark.parametrize("name", sorted(set(MAKERS) - set(EVERY_FAMILY)))
def test_configurations(name: str) -> None:
    model = decoder(name)
    fast = aigc_fast.optimize(copy.deepcopy(model))
    for options in ({}, {"num_beams": 3}):
        check((model, fast), prompts(2, 40), max_new_tokens=20, **options)


@pytest.mark.parametrize("level_name", native.levels())
def test_every_level(pair: tuple[Any, Any], level_name: str) -> None:
    with native.use_level(level_name):
        check(pair, prompts(2, 21), max_new_tokens=12)
        check(pair, prompts(1, 5), max_new_tokens=12, num_beams=4)


def test_levels(pair: tuple[Any, Any]) -> None:
    fast, ids = pair[1], prompts(1, 5)

    class Plain(transformers.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            return scores

    def named(**options: Any) -> str:
        fast.generate(ids, max_new_tokens=3, **options)
        return level(fast)

    assert "native loop" in named()
    assert "native loop" in named(do_sample=True, top_k=5, repetition_penalty=1.1, max_time=60.0)
    assert BEAM_LEVEL in named(num_beams=2)
    assert BEAM_LEVEL in named(num_beams=3, no_repeat_ngram_size=2, repetition_penalty=1.2)
    assert "native step" in named(num_beams=2, return_dict_in_generate=True)
    assert "native step" in named(num_beams=2, max_time=60.0)
    assert "native step" in named(num_beams=2, do_sample=True)
    assert "native loop" in named(logits_processor=transformers.LogitsProcessorList([Plain()]))
    assert "native step" in named(logits_processor=transformers.LogitsProcessorList([Plain()]), num_beams=2)
    assert "native step" in named(return_dict_in_generate=True)


@pytest.mark.parametrize("length", [15, 16, 17, 60])
def test_prompts_of_any_length(every_pair: tuple[Any, Any], length: int) -> None:
    check(every_pair, prompts(2, length), max_new_tokens=4, return_dict_in_generate=True, output_logits=True)


def test_threads_and_batch_change_nothing(pair: tuple[Any, Any]) -> None:
    fast, ids, before = pair[1], prompts(3, 9), torch.get_num_threads()
    options = {"max_new_tokens": 10, "return_dict_in_generate": True, "output_logits": True}
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(fast.generate(ids, **options).logits)
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)
    alone = fast.generate(ids[1:2], **options).logits
    for step, (one, all_) in enumerate(zip(alone, found[0], strict=False)):
        assert torch.equal(one[0], all_[1]), f"step {step}"


def test_processors_streamers_and_criteria_are_the_users(pair: tuple[Any, Any]) -> None:
    class Shift(transformers.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.clone()
            scores[:, input_ids.shape[1] % VOCABULARY] += 100.0
            return scores

    class Stop(transformers.StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return input_ids.shape[1] >= 13 + torch.zeros(input_ids.shape[0])

    class Heard:
        def __init__(self) -> None:
            self.values: list[list[int]] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.values.append(value.flatten().tolist())

        def end(self) -> None:
            self.ended = True

    for options in ({}, {"num_beams": 2}):
        _, found = check(
            pair,
            prompts(1, 4),
            max_new_tokens=30,
            logits_processor=transformers.LogitsProcessorList([Shift()]),
            stopping_criteria=transformers.StoppingCriteriaList([Stop()]),
            **options,
        )
        assert found.shape[1] == 13
    for options in ({}, {"do_sample": True, "top_k": 5}, {"prompt_lookup_num_tokens": 3}):
        heard = Heard(), Heard()
        for model, streamer in zip(pair, heard, strict=True):
            torch.manual_seed(3)
            model.generate(prompts(1, 4), max_new_tokens=12, min_new_tokens=12, streamer=streamer, **options)
        # Of looked-up tokens, several may come at once.
        of_each = [(streamer.values[0], [*itertools.chain(*streamer.values)]) for streamer in heard]
        assert of_each[0] == of_each[1]
        assert heard[1].ended
        assert generation.last_decision(pair[1]).level == generation.LOOP


_WINDOWED = [] if "config" not in inspect.signature(transformers.DynamicCache).parameters else [True]


@pytest.mark.parametrize("forgets", [False, *_WINDOWED])
def test_prefixes_and_caches(every_pair: tuple[Any, Any], forgets: bool) -> None:
    model, fast = every_pair
    ids, name = prompts(2, 12), CACHE
    found = []
    for each in (model, fast):
        cache = transformers.DynamicCache(**({"config": model.config} if forgets else {}))
        with torch.no_grad():
            model(ids[:, :8], use_cache=True, **{name: cache})
        first = each.generate(ids, max_new_tokens=6, return_dict_in_generate=True, **{name: cache})
        more = torch.cat([first.sequences, ids[:, :3]], 1)
        second = each.generate(more, max_new_tokens=6, return_dict_in_generate=True, **{name: first[name]})
        assert type(second[name]) is transformers.DynamicCache
        assert second[name].get_seq_length() == second.sequences.shape[1] - 1
        found.append((first.sequences, second.sequences, second[name]))
    for theirs, ours in zip(found[0][:2], found[1][:2], strict=True):
        assert torch.equal(theirs, ours)
    theirs, ours = (generation.pairs_of(each[2]) for each in found)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert "native step" in level(fast)


def test_a_users_cache_is_filled(every_pair: tuple[Any, Any]) -> None:
    lengths = []
    name = CACHE
    for each in every_pair:
        cache = transformers.DynamicCache()
        each.generate(prompts(1, 5), max_new_tokens=4, min_new_tokens=4, **{name: cache})
        lengths.append(cache.get_seq_length())
    assert lengths[0] == lengths[1] == 8


@pytest.mark.parametrize("options", [{}, {"do_sample": True}])
def test_assisted(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    ids = prompts(1, 6).repeat(1, 3)
    check(pair, ids, max_new_tokens=20, prompt_lookup_num_tokens=4, **options)
    check(pair, ids, max_new_tokens=20, assistant_model=decoder("gpt2", seed=3), **options)


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3, "min_new_tokens": 30}, {"eos_token_id": list(range(50))}]
)
def test_lookup_guesses_and_changes_nothing(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    model, fast = pair
    for seed in range(3):
        ids = prompts(1, 6, seed=seed).repeat(1, 4)
        options = {"max_new_tokens": 40, **options}
        wanted = model.generate(ids, **options)
        assert_same_ids(model, fast.generate(ids, prompt_lookup_num_tokens=5, **options), wanted)
        assert "native loop" in level(fast)
    cache = transformers.DynamicCache()
    found = fast.generate(ids, prompt_lookup_num_tokens=5, **options, **{CACHE: cache})
    assert cache.get_seq_length() == found.shape[1] - 1


def test_guidance(every_pair: tuple[Any, Any]) -> None:
    check(every_pair, prompts(1, 6), max_new_tokens=8, guidance_scale=1.5, negative_prompt_ids=prompts(1, 3, seed=4))


def test_weights_are_followed(every_pair: tuple[Any, Any]) -> None:
    model, fast = every_pair
    ids, options = prompts(1, 6), {"max_new_tokens": 8}
    before = fast.generate(ids, **options)

    def both(change: Any) -> Tensor:
        change(model), change(fast)
        _, found = check(every_pair, ids, **options)
        return found

    def embed(each: Any) -> Tensor:
        return each.get_input_embeddings().weight

    changed = both(lambda each: embed(each).data.mul_(torch.linspace(-2, 2, embed(each).numel()).view_as(embed(each))))
    assert not torch.equal(before, changed)
    other = decoder(model.config.model_type, seed=9).state_dict()
    assert not torch.equal(changed, both(lambda each: each.load_state_dict(other)))

    def train(each: Any) -> None:
        torch.manual_seed(0)
        optimizer = torch.optim.SGD(each.parameters(), 0.5)
        each.train()
        each(prompts(2, 9), labels=prompts(2, 9)).loss.backward()
        optimizer.step()
        each.eval()

    both(train)
    both(lambda each: each.resize_token_embeddings(VOCABULARY + 6, mean_resizing=False))


def test_copies_pickles_and_files(every_pair: tuple[Any, Any], tmp_path: Any) -> None:
    model, fast = every_pair
    aigc_fast.optimize(fast, weights="fp32")
    ids = prompts(1, 6)
    wanted = model.generate(ids, max_new_tokens=6)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), torch.load(file, weights_only=False)):
        assert isinstance(copied, type(model))
        assert torch.equal(copied.generate(ids, max_new_tokens=6), wanted)
        assert "fp32" in level(copied)
    fast.save_pretrained(tmp_path)
    read = type(model).from_pretrained(tmp_path)
    assert read.config.architectures == [type(model).__name__]
    assert torch.equal(read.generate(ids, max_new_tokens=6), wanted)


def test_inference_mode_and_after_it(pair: tuple[Any, Any]) -> None:
    for options in ({"min_new_tokens": 4}, {"num_beams": 2}):
        with torch.inference_mode():
            check(pair, prompts(2, 5), max_new_tokens=6, **options)
        check(pair, prompts(2, 5), max_new_tokens=6, **options)


def test_compiled_models_still_run(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    compiled = torch.compile(fast, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(prompts(1, 5)).logits, model(prompts(1, 5)).logits)


def test_restore(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    fast.generate(prompts(1, 4), max_new_tokens=2)
    assert type(fast) is not type(model)
    assert aigc_fast.report(fast).kept_bytes > 0
    aigc_fast.restore(fast)
    assert type(fast) is type(model)
    assert vars(fast).keys() == vars(model).keys()
    assert aigc_fast.report(fast).kept_bytes == 0
    assert "not optimized yet" in str(aigc_fast.report(fast))


def test_decoders_inside_a_module() -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = decoder("gpt2")

    holder = aigc_fast.optimize(Holder())
    assert [entry.name for entry in aigc_fast.report(holder).decoders] == ["text"]
    assert isinstance(holder.text.generate(prompts(1, 4), max_new_tokens=2), Tensor)
    assert "native" in level(holder)


LEFT = {
    "attentions": {"output_attentions": True, "return_dict_in_generate": True},
    "no-cache": {"use_cache": False},
    "static": {"cache_implementation": "static"},
}


@pytest.mark.parametrize("options", LEFT.values(), ids=LEFT.keys())
def test_what_the_engine_does_not_know_is_left(pair: tuple[Any, Any], options: dict[str, Any]) -> None:
    fast, ids = pair[1], prompts(1, 6)
    found = [each.generate(ids, max_new_tokens=5, **options) for each in pair]
    theirs, ours = (each if isinstance(each, Tensor) else each.sequences for each in found)
    assert torch.equal(theirs, ours)
    assert "transformers' own" in level(fast)
    explained = aigc_fast.explain("decode", fast, ids, max_new_tokens=5, **options)
    assert explained.chosen == "reference"
    assert explained.reasons["cpu"] is not None


def test_changed_modules_are_left(pair: tuple[Any, Any]) -> None:
    fast, ids = pair[1], prompts(1, 6)

    def reason() -> str | None:
        return aigc_fast.explain("decode", fast, ids, max_new_tokens=5).reasons["cpu"]

    assert reason() is None
    head = fast.lm_head
    handle = head.register_forward_hook(lambda module, args, output: output * -1)
    assert "hooks" in reason()
    assert not torch.equal(fast.generate(ids, max_new_tokens=5), pair[0].generate(ids, max_new_tokens=5))
    handle.remove()
    head.forward = lambda x: x
    assert reason() == "the forward of lm_head was replaced"
    del head.forward
    fast.lm_head = torch.nn.Sequential(head)
    assert "Sequential" in reason()
    fast.lm_head = head
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in reason()
    with aigc_fast.backend("reference"):
        assert "forced" in reason()
    assert reason() is None


REFUSED = {
    "a window of one token": ("mistral", {"sliding_window": 1}, "sliding_window is 1"),
    "a window that is no number": ("mistral", {"sliding_window": 2.5}, "sliding_window is 2.5"),
    "layers of another kind": ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    "an activation without a kernel": ("gpt_neox", {"hidden_act": "mish"}, "'mish' is not among"),
}


@pytest.mark.parametrize(("family", "changes", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_configurations_that_are_left(family: str, changes: dict[str, Any], reason: str) -> None:
    model = decoder(family)
    vars(model.config).update(changes)
    with pytest.raises(Refused, match=reason):
        spec_of(model, type(model))


def test_changed_parts_are_left(every_pair: tuple[Any, Any]) -> None:
    _, fast = every_pair

    def reason() -> str | None:
        return aigc_fast.explain("decode", fast, prompts(1, 4), max_new_tokens=2).reasons["cpu"]

    name, activation = next((n, m) for n, m in fast.named_modules() if n.endswith((".act", ".act_fn")))
    fast.set_submodule(name, torch.nn.Tanh())
    assert "was replaced by Tanh" in reason()
    fast.set_submodule(name, activation)
    attentions = [module for module in fast.modules() if hasattr(module, "attention_dropout")]
    for attention in attentions:
        attention.attention_dropout = 0.1
    fast.train()
    assert "training mode, with dropout" in reason()
    fast.eval()
    assert reason() is None


def test_families_are_those_of_the_builders() -> None:
    assert {cls.__module__.split(".")[2] for cls in BUILDERS} == set(FAMILIES_OF_OPTIMIZE)


def test_subclasses_are_left() -> None:
    class Mine(transformers.GPT2LMHeadModel):
        pass

    model = aigc_fast.optimize(Mine(decoder("gpt2").config))
    assert type(model) is Mine
    assert "subclass" in aigc_fast.report(model).decoders[0].note


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("level_name", native.levels())
def test_smaller_weights_stay_near(pair: tuple[Any, Any], weights: str, level_name: str) -> None:
    fast = aigc_fast.optimize(pair[1], weights=weights)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    with native.use_level(level_name):
        ids = prompts(3, 30)
        wanted, found = (each.generate(ids, **options).logits[0] for each in pair)
    error = (found - wanted).norm() / wanted.norm()
    assert error < {"bf16": 0.02, "int8": 0.08, "int4": 0.4}[weights]
    assert weights in level(fast)


def test_bf16_models(every_pair: tuple[Any, Any]) -> None:
    model, fast = every_pair
    exact = copy.deepcopy(model).bfloat16().float()
    fast.bfloat16()
    options = {"max_new_tokens": 10}
    assert torch.equal(fast.generate(prompts(1, 8), **options), exact.generate(prompts(1, 8), **options))
    assert "bf16" in level(fast)


def test_threads_generate_at_once(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    wanted = [model.generate(prompts(1, 5, seed=seed), max_new_tokens=8) for seed in range(4)]
    found: list[Any] = [None] * 4

    def run(seed: int) -> None:
        found[seed] = fast.generate(prompts(1, 5, seed=seed), max_new_tokens=8)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_bad_input(pair: tuple[Any, Any]) -> None:
    model = pair[0]
    for ids, options in (
        (torch.tensor([[5, VOCABULARY + 3]]), {}),
        (torch.tensor([[5, -3]]), {}),
        (prompts(1, 4), {"max_new_tokens": 0}),
        (prompts(1, 4), {"num_beams": 2, "num_return_sequences": 3}),
        (torch.zeros(1, 0, dtype=torch.int64), {}),
    ):
        errors = []
        for each in pair:
            with pytest.raises(Exception) as caught:
                each.generate(ids, **{"max_new_tokens": 3} | options)
            errors.append(caught.value)
        assert type(errors[0]) is type(errors[1])
    too_long = prompts(1, 90)
    if "GPT2" in type(model).__name__:
        for each in pair:
            with pytest.raises(IndexError):
                each.generate(too_long, max_new_tokens=20, min_new_tokens=20)
    else:
        check(pair, prompts(1, 125), max_new_tokens=8, min_new_tokens=8)


def test_an_interrupt_is_heard(pair: tuple[Any, Any]) -> None:
    fast = pair[1]

    class Interrupts:
        steps = 0

        def put(self, value: Tensor) -> None:
            self.steps += 1
            if self.steps == 3:
                raise KeyboardInterrupt

        def end(self) -> None:
            pass

    streamer = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        fast.generate(prompts(1, 4), max_new_tokens=30, min_new_tokens=30, streamer=streamer)
    assert streamer.steps == 3
    check(pair, prompts(1, 4), max_new_tokens=4)


def test_explain(pair: tuple[Any, Any]) -> None:
    model, fast = pair
    assert aigc_fast.explain("decode", model, prompts(1, 4)).chosen == "reference"
    explained = aigc_fast.explain("decode", fast, prompts(1, 4), num_beams=2, max_new_tokens=3)
    assert explained.chosen == "cpu"
    assert BEAM_LEVEL in str(explained)
    state = torch.get_rng_state()
    aigc_fast.explain("decode", fast, prompts(1, 4), do_sample=True, max_new_tokens=3)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError, match="model"):
        aigc_fast.explain("decode", torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="weights='int3'"):
        aigc_fast.optimize(fast, weights="int3")
