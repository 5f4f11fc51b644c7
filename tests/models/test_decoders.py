"""GPT-2 and Llama beside transformers' own: logits, ids and the options of generation; and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle
import sys

import pytest
import torch
from own_decoders import GPT2S, LLAMAS, VOCABULARY, decoder, prompts, transformers_twin

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.models import GPT2, CharTokenizer, IdTokenizer, Llama, load, save
from aigc_fast.models.text.generating import Speed
from aigc_fast.ops.decode.engine import State
from aigc_fast.runtime import native

pytestmark = pytest.mark.filterwarnings("ignore:Using the model-agnostic default")

NAMES = [*GPT2S, *LLAMAS]
OPTIONS = {
    "greedy": {"max_new_tokens": 20},
    "default-length": {},
    "max-length": {"max_length": 25},
    "beams-2": {"max_new_tokens": 20, "num_beams": 2},
    "seeds-call": {"max_length": 50, "num_beams": 5, "no_repeat_ngram_size": 2},
    "beams-returns": {"max_new_tokens": 15, "num_beams": 4, "num_return_sequences": 3},
    "beams-early": {"max_new_tokens": 25, "num_beams": 3, "early_stopping": True, "length_penalty": 0.5},
    "beams-never": {"max_new_tokens": 25, "num_beams": 3, "early_stopping": "never", "length_penalty": 2.0},
    "beams-short": {"max_new_tokens": 25, "num_beams": 4, "length_penalty": -1.0},
    "beams-pad-0": {"max_new_tokens": 25, "num_beams": 3, "pad_token_id": 0},
    "no-end": {"max_new_tokens": 20, "num_beams": 3, "eos_token_id": 96},
    "several-ends": {"max_new_tokens": 25, "num_beams": 3, "eos_token_id": [1, 5, 9, 40]},
    "trigrams": {"max_new_tokens": 30, "no_repeat_ngram_size": 3},
    "unigrams": {"max_new_tokens": 30, "no_repeat_ngram_size": 1},
    "penalty": {"max_new_tokens": 20, "repetition_penalty": 1.7},
    "penalty-beams": {"max_new_tokens": 20, "repetition_penalty": 0.8, "num_beams": 3},
    "min-length": {"max_new_tokens": 20, "min_length": 15, "eos_token_id": list(range(1, 60))},
    "min-new": {"max_new_tokens": 20, "min_new_tokens": 9, "eos_token_id": list(range(1, 60))},
    "bad-words": {"max_new_tokens": 20, "bad_words_ids": [[4], [7, 9], *([token] for token in range(30, 70))]},
    "suppress": {"max_new_tokens": 20, "suppress_tokens": list(range(20, 60)), "begin_suppress_tokens": [61, 62]},
    "sample": {"max_new_tokens": 20, "do_sample": True},
    "sample-warped": {"max_new_tokens": 20, "do_sample": True, "temperature": 1.4, "top_k": 12, "top_p": 0.8},
    "sample-min-p": {"max_new_tokens": 20, "do_sample": True, "min_p": 0.1, "top_k": 0, "num_return_sequences": 2},
    "sample-beams": {"max_new_tokens": 15, "do_sample": True, "num_beams": 3, "top_p": 0.9, "temperature": 2.0},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Models and transformers' twins, by name."""
    found = {}

    def pair(name):
        if name not in found:
            model = decoder(name)
            found[name] = model, transformers_twin(model, tmp_path_factory.mktemp(name) / "model")
        return found[name]

    return pair


def both(pair, ids, **options):
    model, twin = pair
    options = {"pad_token_id": 2, **options}
    torch.manual_seed(3)
    wanted = twin.generate(ids, **options)
    torch.manual_seed(3)
    return model.generate(ids, **options), wanted


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_weights_are_transformers(pairs, name):
    model, twin = pairs(name)
    assert model.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    ids = prompts(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), twin(ids).logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(ids, keep=2), model(ids)[:, -2:])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["gpt2", "llama-llama3"])
def test_ids_are_transformers(pairs, name, options):
    found, wanted = both(pairs(name), prompts(2, 7), **OPTIONS[options])
    assert torch.equal(found, wanted), f"{found}\n{wanted}"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("gpt2", "llama-llama3")])
def test_ids_of_other_kinds_are_transformers(pairs, name):
    for options in ({"max_new_tokens": 30}, {"max_new_tokens": 20, "num_beams": 3}):
        found, wanted = both(pairs(name), prompts(2, 7), **options)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", ["greedy", "seeds-call", "sample-warped", "penalty", "beams-returns"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_padding_at_the_left_is_transformers(pairs, name, options):
    ids = prompts(3, 9)
    mask = torch.ones_like(ids)
    mask[0, :4], mask[2, :1] = 0, 0
    ids = ids.masked_fill(mask == 0, 2)
    for given in ({"attention_mask": mask}, {}):
        found, wanted = both(pairs(name), ids, **given, **OPTIONS[options])
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", ["greedy", "seeds-call", "sample-warped"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_without_the_engine_ids_are_the_same(pairs, name, options, caplog):
    model, _ = pairs(name)
    ids = prompts(3, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    found = {}
    for backend in ("auto", "reference"):
        with aigc_fast.backend(backend):
            is_plain = model.way_of(ids).weights is None
            assert is_plain == (backend == "reference" or native.cpu_reason() is not None)
            torch.manual_seed(2)
            found[backend] = model.generate(ids, attention_mask=mask, pad_token_id=2, **OPTIONS[options])
    assert torch.equal(found["auto"], found["reference"])


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_the_engine_follows_the_weights_and_leaves_what_it_cannot_read(caplog):
    model, ids = decoder("llama"), prompts(1, 5)
    before = model.generate(ids, max_new_tokens=8)
    assert model.way.reason is None
    with torch.no_grad():
        model.lm_head.weight.data.mul_(-1)
    after = model.generate(ids, max_new_tokens=8)
    assert not torch.equal(before, after)
    with aigc_fast.backend("reference"):
        assert torch.equal(model.generate(ids, max_new_tokens=8), after)
    hook = model.lm_head.register_forward_hook(lambda module, args, output: -output)
    with caplog.at_level(logging.WARNING, logger="aigc_fast"):
        assert torch.equal(model.generate(ids, max_new_tokens=8), before)
    assert "lm_head has hooks" in caplog.text
    hook.remove()
    assert torch.equal(model.double().generate(ids, max_new_tokens=8), after)


def test_the_caller_processors_and_streamers_are_used(pairs):
    model, twin = pairs("gpt2")
    ids = prompts(1, 6)

    def only_even(ids, scores):
        scores = scores.clone()
        scores[:, 1::2] = -torch.inf
        return scores

    class Streamer:
        def __init__(self):
            self.seen, self.is_over = [], False

        def put(self, value):
            self.seen.append(value)

        def end(self):
            self.is_over = True

    streamers = Streamer(), Streamer()
    options = {"max_new_tokens": 9, "logits_processor": [only_even], "pad_token_id": 2}
    found = model.generate(ids, streamer=streamers[0], **options)
    wanted = twin.generate(ids, streamer=streamers[1], **options)
    assert torch.equal(found, wanted)
    assert (found[:, 6:] % 2 == 0).all()
    assert streamers[0].is_over
    assert all(map(torch.equal, streamers[0].seen, streamers[1].seen))


def test_replaced_parts_are_not_the_engine():
    ids = prompts(1, 5)
    for change in (
        lambda model: setattr(model.transformer["h"][0], "ln_1", torch.nn.Identity()),
        lambda model: setattr(model.transformer["h"][1].mlp, "c_fc", torch.nn.Linear(36, 144)),
        lambda model: setattr(
            model, "__class__", type("Other", (GPT2,), {"forward": lambda *a, **k: -GPT2.forward(*a, **k)})
        ),
    ):
        model = decoder("gpt2")
        change(model)
        assert model.way_of(ids).reason is not None
        with torch.no_grad():
            wanted = model(ids)[:, -1].argmax(-1)
        assert torch.equal(model.generate(ids, max_new_tokens=1)[:, -1], wanted)


def test_nothing_of_transformers_is_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    model = decoder("llama")
    model.save_pretrained(tmp_path / "model")
    again = Llama.from_pretrained(tmp_path / "model", weights="bf16")
    assert again.generate(prompts(2, 5), max_new_tokens=6, num_beams=2).shape[0] == 2


def test_copies_and_pickles_generate_the_same():
    model, ids = decoder("llama-llama3"), prompts(1, 5)
    wanted = model.generate(ids)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again.generate(ids), wanted)
        assert (again.lm_head.weight is again.embedding.weight) == model.tied


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_weights_are_kept_as_asked(weights):
    model = decoder("gpt2")
    assert model.generate("5 6", length=8, temperature=0, weights=weights)
    if native.cpu_reason() is None:
        assert model.way.weights == weights
    with pytest.raises(ValueError, match="weights='fp8'"):
        model.stream("5", length=3, weights="fp8")


GUESSED = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 0.3},
    "trigrams": {"no_repeat_ngram_size": 3},
    "min-length": {"min_length": 30, "eos_token_id": list(range(1, 60))},
}


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("options", GUESSED)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_guessed_tokens_change_nothing(name, options, weights):
    model, ids = decoder(name), prompts(1, 12).repeat(1, 2)
    model.weights = weights
    options = {"max_new_tokens": 50, "seed": 3, **GUESSED[options]}
    wanted = model.generate(ids, **options)
    for count in (1, 4, 20):
        found = model.generate(ids, prompt_lookup_num_tokens=count, **options)
        assert model.way.loop == "prompt lookup"
        assert torch.equal(found, wanted)
    assert model.speed.tokens == wanted.shape[1] - ids.shape[1]


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_guesses_save_steps(monkeypatch):
    model, ids, read = decoder("gpt2", generation={"eos_token_id": []}), prompts(1, 6), []
    extend = State.extend
    monkeypatch.setattr(State, "extend", lambda self, ids, *rest: read.append(ids.shape[1]) or extend(self, ids, *rest))
    with torch.no_grad():
        for parameter in model.transformer["h"].parameters():
            parameter.zero_()
    # Nothing but the last token and its place is looked at: soon all comes again.
    with torch.no_grad():
        model.transformer["wpe"].weight.zero_()
    found = model.generate(ids, max_new_tokens=60, prompt_lookup_num_tokens=7)
    assert torch.equal(found, model.generate(ids, max_new_tokens=60))
    assert len(read) < 40


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt2-untied"])
@pytest.mark.parametrize(
    "options", [{}, {"suppress_tokens": list(range(20, 60))}, {"min_new_tokens": 9, "eos_token_id": list(range(1, 60))}]
)
def test_the_most_probable_tokens_are_found_without_most_of_the_head(name, options):
    model, ids = decoder(name), prompts(3, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options = {"max_new_tokens": 25, "attention_mask": mask, **options}
    found = model.generate(ids, **options)
    assert model.way.loop == "steps without most of the head"
    assert torch.equal(found, model.generate(ids, certified_head=False, **options))
    assert model.way.loop == "steps"


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_how_it_generates_is_told():
    model, ids = decoder("gpt2"), prompts(1, 6)
    assert "not called yet" in str(aigc_fast.report(model))
    for options, text in (
        ({}, "steps without most of the head on the engine, fp32 weights"),
        ({"do_sample": True}, "steps on the engine, fp32 weights"),
        ({"repetition_penalty": 1.2}, "steps on the engine, fp32 weights"),
        ({"num_beams": 3}, "beams on the engine, fp32 weights"),
        ({"prompt_lookup_num_tokens": 3}, "prompt lookup on the engine, fp32 weights"),
    ):
        explained = aigc_fast.explain("decode", model, ids, max_new_tokens=4, **options)
        assert (explained.op, explained.chosen) == ("decode", "cpu")
        assert text in str(explained)
        model.generate(ids, max_new_tokens=4, **options)
        (entry,) = aigc_fast.report(model).decoders
        assert (entry.name, entry.layer, entry.swapped, entry.note) == ("(model)", "GPT2", True, f"last call: {text}")
    assert aigc_fast.report(model).kept_bytes > 0
    with aigc_fast.backend("reference"):
        explained = aigc_fast.explain("decode", model, ids, max_new_tokens=4)
    assert explained.chosen == "reference"
    assert "forced" in explained.reasons["cpu"]
    with pytest.raises(UserError, match="num_beams=0"):
        aigc_fast.explain("decode", model, ids, num_beams=0)


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
def test_optimize_says_how_weights_are_kept():
    model, ids = decoder("llama"), prompts(1, 6)
    assert aigc_fast.optimize(model, weights="int8").weights == "int8"
    holder = torch.nn.ModuleDict({"text": model})
    model.generate(ids, max_new_tokens=3)
    (entry,) = aigc_fast.report(holder).decoders
    assert (entry.name, entry.layer) == ("text", "Llama")
    assert "int8 weights" in entry.note
    assert "int8 weights" in str(aigc_fast.explain("decode", model, ids))
    aigc_fast.restore(holder)
    assert model.weights is None
    assert aigc_fast.report(holder).kept_bytes == 0


def test_seeds_and_modes():
    model, ids = decoder("gpt2", dropout=0.5), prompts(1, 6)
    model.train()
    options = {"max_new_tokens": 12, "do_sample": True}
    found = model.generate(ids, seed=4, **options)
    assert model.training
    assert model.transformer["drop"].training
    assert torch.equal(found, model.generate(ids, generator=torch.Generator().manual_seed(4), **options))
    assert not torch.equal(found, model.generate(ids, seed=5, **options))
    assert model.speed.tokens == found.shape[1] - 6


def test_text_goes_in_and_out():
    model = decoder("gpt2")
    text = model.generate("5 6 7", max_length=12)
    assert text == " ".join(map(str, model.generate(torch.tensor([[5, 6, 7]]), max_length=12)[0].tolist()))
    several = model.generate("5 6 7", max_length=12, num_beams=3, num_return_sequences=2)
    assert len(several) == 2
    assert model.generate(max_new_tokens=3).startswith("0 ")
    drawn = model.generate("5 6", length=30, generator=torch.Generator().manual_seed(0))
    assert drawn == "".join(model.stream("5 6", length=30, generator=torch.Generator().manual_seed(0)))
    assert drawn == model.generate("5 6", length=30, seed=0)


def test_unknown_characters_are_never_drawn():
    tokenizer = CharTokenizer("ab", unknown=True)
    model = GPT2(tokenizer=tokenizer, hidden=8, num_layers=1, num_heads=2, context=16).eval()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert set(model.generate(length=200, seed=1)) <= set("ab")
    assert "\ufffd" not in model.generate("a", length=9, num_beams=2)


def test_text_goes_on_beyond_the_context():
    model = decoder("gpt2", context=12, generation={"eos_token_id": []})
    words = model.generate("5 6", length=40, temperature=0).split()
    assert len(words) == 40 or "1" not in words
    beams = model.generate("5 6", length=40, num_beams=3)
    assert len(beams.split()) <= 12 - 3
    with pytest.raises(UserError, match="leave no room"):
        model.generate(" ".join(["5"] * 12), length=4, num_beams=2)


def test_probabilities_are_those_of_the_logits():
    model = decoder("llama", context=16)
    documents = [prompts(5, seed=1), prompts(40, seed=2), prompts(0), prompts(16, seed=3)]
    tokens = torch.cat([part for document in documents for part in (document, torch.tensor([1]))])
    found = model.log_probabilities(tokens)
    wanted = []
    for document in documents:
        inputs = torch.cat([torch.tensor([0]), document])
        for place, token in enumerate([*document.tolist(), 1]):
            first = 0 if place < 16 else (place - 16) // 8 * 8 + 8
            logits = model(inputs[None, first : place + 1])[0, -1]
            wanted.append(logits.log_softmax(-1)[token])
    torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        wanted = float(model.log_probabilities(torch.tensor([5, 6, 7, 1])).sum())
    assert model.score("5 6 7") == pytest.approx(wanted)
    assert model.score_all(["5 6 7", "8"]) == pytest.approx(wanted + model.score("8"))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_reach_all_weights_and_files_keep_them(tmp_path, name):
    model = decoder(name).train()
    ids = prompts(2, 9)
    torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors")
    assert torch.equal(again(ids), model.eval()(ids))
    assert (again.lm_head.weight is again.embedding.weight) == again.tied
    assert again.to(torch.bfloat16).generate(ids, max_new_tokens=4).shape == (2, 13)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 5}, "max_length=5: expected more than the 6 tokens of the prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: expected 1 or more"),
        ({"max_new_tokens": 91}, "6 tokens, and 91 to come, are more than the 96"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: expected at most num_beams=1, or do_sample=True"),
        ({"num_beams": 2, "num_return_sequences": 3, "do_sample": True}, "expected at most num_beams=2"),
        ({"temperature": 0.0, "do_sample": True}, "temperature=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_k": -1}, "top_k=-1"),
        ({"early_stopping": "always"}, "early_stopping='always'"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"prompt_lookup_num_tokens": 0}, "prompt_lookup_num_tokens=0: expected 1 or more tokens"),
        ({"prompt_lookup_num_tokens": 3, "num_beams": 2}, "prompt_lookup_num_tokens=3: expected num_beams=1"),
        ({"certified_head": 1}, "certified_head=1: expected True or False"),
        ({"eos_token_id": 97}, r"eos_token_id=\[97\]: expected 0 to 96"),
        ({"penalty_alpha": 0.5}, "penalty_alpha: no such option"),
        ({"attention_mask": torch.ones(1, 5)}, r"attention_mask: expected \(1, 6\)"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]])}, "padding at the left"),
        ({"num_beams": 2, "streamer": object()}, "streamer: tokens of beams"),
        ({"stop": "x"}, "stop: expected only with length"),
        ({"length": 4}, "inputs is Tensor: expected a text"),
    ],
)
def test_bad_options_are_told(options, words):
    with pytest.raises(UserError, match=words):
        decoder("gpt2").generate(prompts(1, 6), **options)


@pytest.mark.parametrize(
    "ids",
    [
        torch.empty(1, 0, dtype=torch.int64),
        torch.empty(0, 3, dtype=torch.int64),
        torch.tensor([1, 2]),
        torch.tensor([[1.0]]),
        torch.tensor([[VOCABULARY]]),
        torch.tensor([[-1]]),
        None,
    ],
)
def test_bad_ids_are_told(ids):
    with pytest.raises(UserError, match="inputs: expected"):
        decoder("gpt2").generate(ids)


def test_bad_text_and_settings_of_streams_are_told():
    model = decoder("gpt2")
    with pytest.raises(UserError, match="unknown 'a'"):
        model.generate("5 a", length=3)
    with pytest.raises(UserError, match="beam search does not sample"):
        model.stream("5", length=3, num_beams=2, top_k=4)
    with pytest.raises(UserError, match="min_p=2"):
        model.stream("5", length=3, min_p=2)


@pytest.mark.parametrize(
    ("kind", "config", "words"),
    [
        (GPT2, {"num_heads": 5}, "num_heads=5: expected a divisor of hidden=192"),
        (GPT2, {"activation": "swiglu"}, "activation='swiglu'"),
        (GPT2, {"dropout": 1.0}, "dropout=1.0"),
        (GPT2, {"context": 1}, "context=1"),
        (GPT2, {"units": 0}, "units=0"),
        (Llama, {"num_kv_heads": 4}, "num_kv_heads=4: expected a divisor of num_heads=6"),
        (Llama, {"head_size": 5}, "head_size=5: expected an even number"),
        (Llama, {"rope": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope_type is 'dynamic'"),
        (Llama, {"rope": {"rope_type": "linear", "rope_theta": 1e4}}, "factor is None"),
    ],
)
def test_bad_sizes_are_told(kind, config, words):
    with pytest.raises(ValueError, match=words):
        kind(tokenizer=IdTokenizer(9, 1), **config)


def test_a_single_token_is_told_as_one() -> None:
    assert str(Speed(1, 0.314, 0.314)) == "1 token after 0.31 s"
    assert str(Speed(5, 0.5, 2.5)) == "5 tokens, 2 tokens/s, the first after 0.50 s"
