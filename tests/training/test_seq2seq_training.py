"""Training of encoder-decoders: what a step reads, how the rate goes, what is left out, and that tasks are learned."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from aigc_fast.data import load_pairs
from aigc_fast.errors import UserError
from aigc_fast.generation import read_text_provenance
from aigc_fast.media.pairs import PairFeed
from aigc_fast.models import Seq2SeqTransformer, load
from aigc_fast.training import default_config, make_trainer, train
from aigc_fast.training.losses import smoothed_cross_entropy


def model_of(dataset, **config):
    torch.manual_seed(1)
    sizes = {"d_model": 8, "nhead": 2, "num_encoder_layers": 1, "num_decoder_layers": 1, "dim_feedforward": 8}
    return Seq2SeqTransformer(tokenizer=dataset.tokenizer, **{**sizes, "max_positions": 6, **config})


def read(batch):
    """Sources, inputs and answers of a batch, as lists of tokens."""
    parts = ((batch.sources, batch.of_sources), (batch.inputs, batch.of_inputs), (batch.answers, batch.of_inputs))
    return [[row.tolist() for row in tokens.split(lengths.each)] for tokens, lengths in parts]


def test_a_pass_reads_every_pair_once(pairs):
    model, tokenizer = model_of(pairs), pairs.tokenizer
    feed, found = PairFeed(model, pairs, default_config(model, batch_size=4)), []
    batches = feed.batches(0)
    for _ in range(feed.epoch_steps):
        sources, inputs, answers = read(next(batches)[0])
        for source, given, answer in zip(sources, inputs, answers, strict=True):
            assert source[-1] == answer[-1] == given[0] == tokenizer.boundary
            assert given[1:] == answer[:-1]
            found.append((tokenizer.decode(source), tokenizer.decode(answer)))
    assert (feed.step_size, feed.epoch_steps, feed.unit) == (4, 5, "pairs")
    assert sorted(found) == sorted(pairs.training)


def test_what_a_step_reads_depends_on_the_seed_and_the_step_alone(pairs):
    model = model_of(pairs)
    feed = PairFeed(model, pairs, default_config(model, batch_size=4))
    several = feed.batches(0)
    for step in range(2 * feed.epoch_steps):
        assert torch.equal(next(several)[0].sources, next(feed.batches(step))[0].sources)
    other = PairFeed(model, pairs, default_config(model, batch_size=4, seed=7))
    assert not torch.equal(next(feed.batches(0))[0].sources, next(other.batches(0))[0].sources)


def test_pairs_without_positions_are_left_out_and_named(pairs):
    long = [("abcdefa", "a"), ("b", "abcdefabc"), ("abcde", "a"), ("a", "abcde")]
    data = dataclasses.replace(pairs, training=(*pairs.training, *long), held_out=(*pairs.held_out, *long))
    model = model_of(data)
    feed = PairFeed(model, data, default_config(model, batch_size=64))
    assert feed.notes == (
        "2 pairs left out, longer than 6 tokens: 'abcdefa', 'b'",
        "held out: 2 pairs left out, longer than 6 tokens: 'abcdefa', 'b'",
    )
    assert feed.step_size == 22
    assert math.isfinite(feed.measure(model)["held_out"])


def test_training_tells_what_was_left_out(pairs, tmp_path):
    data = dataclasses.replace(pairs, training=(*pairs.training, ("abcdefa", "a")))
    model = model_of(data)
    result = train(model, data, default_config(model, steps=1), tmp_path)
    assert load(result.model_path).metadata["notes"] == ["1 pair left out, longer than 6 tokens: 'abcdefa'"]


def test_data_without_positions_at_all_is_refused(pairs):
    model = model_of(pairs, max_positions=3)
    with pytest.raises(UserError, match=r"words: has no pairs for which there are positions.*than 3"):
        PairFeed(model, pairs, default_config(model))


def test_data_of_another_medium_is_refused(pairs, texts, tmp_path):
    model = model_of(texts)
    with pytest.raises(UserError, match="sayings: holds documents, which seq2seq does not make"):
        train(model, texts, default_config(model), tmp_path)


def test_the_rate_grows_and_falls_as_in_the_paper(pairs):
    model = model_of(pairs)
    trainer = make_trainer(model, default_config(model, warm_up=4, learning_rate_schedule="paper"))
    rates = []
    for step in range(16):
        trainer.step_count = step
        rates.append(trainer.learning_rate)
    wanted = [8**-0.5 * min(step**-0.5, step * 4**-1.5) for step in range(1, 17)]
    assert rates == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"learning_rate": 0.5, "warm_up": 2}, [0.25, 0.5, 0.5 * (2 / 3) ** 0.5]),
        ({"learning_rate": 0.5, "warm_up": 0, "learning_rate_schedule": "constant"}, [0.5, 0.5, 0.5]),
        ({"learning_rate": 0.5, "warm_up": 0}, [0.5, 0.5 / 2**0.5, 0.5 / 3**0.5]),
        ({"learning_rate": 0.5, "warm_up": 0, "learning_rate_schedule": "linear", "steps": 4}, [0.5, 0.375, 0.25]),
        ({"learning_rate": 0.5, "warm_up": 2, "learning_rate_schedule": "linear", "steps": 3}, [0.25, 0.5, 0.25]),
    ],
)
def test_the_rate_by_settings(pairs, settings, rates):
    model = model_of(pairs)
    trainer = make_trainer(model, default_config(model, **settings))
    batches = PairFeed(model, pairs, trainer.config).batches(0)
    assert [trainer.step(next(batches)[0])["learning_rate"] for _ in rates] == pytest.approx(rates)


def test_a_rate_that_falls_to_nothing_asks_when(pairs, tmp_path):
    model = model_of(pairs)
    config = default_config(model, warm_up=0, learning_rate_schedule="linear", epochs=2, batch_size=4)
    batch = next(PairFeed(model, pairs, config).batches(0))[0]
    with pytest.raises(UserError, match="'linear': it falls until the last step: expected steps"):
        make_trainer(model, config).step(batch)
    rates = []
    train(model, pairs, config, tmp_path, callbacks=(lambda step, values: rates.append(values["learning_rate"]),))
    assert rates == pytest.approx([1e-3 * (1 - step / 10) for step in range(10)])


def test_there_is_nothing_to_shift(pairs):
    model = model_of(pairs)
    with pytest.raises(UserError, match="shift=2: it moves images"):
        PairFeed(model, pairs, default_config(model, shift=2))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_labels_are_torchs(smoothing):
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (7,))
    loss, nats = smoothed_cross_entropy(logits, targets, smoothing)
    wanted = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted)
    assert nats == torch.nn.functional.cross_entropy(logits, targets)
    assert not nats.requires_grad
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, wanted)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"warm_up": -1}, "warm_up=-1"),
        (
            {"learning_rate_schedule": "cosine"},
            "learning_rate_schedule='cosine': expected one of inverse_sqrt, paper, linear, constant",
        ),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"measure_interval": -1}, "measure_interval=-1"),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        default_config(Seq2SeqTransformer, **settings)


def test_samples_stand_beside_what_was_wanted(pairs, tmp_path):
    model = model_of(pairs)
    result = train(model, pairs, default_config(model, steps=2, sample_interval=1), tmp_path)
    text = (tmp_path / "samples" / "step-00000001.txt").read_text()
    for source, target in pairs.examples:
        assert f"{source}\n  target: {target}\n  answer: " in text
    assert read_text_provenance(tmp_path / "samples" / "step-00000001.txt").settings["step"] == 1
    assert load(result.model_path).metadata["data"]["examples"] == [source for source, _ in pairs.examples]


def test_short_words_are_reversed():
    """The whole task takes more than a thousand steps, a part of it a few."""
    whole = load_pairs("reverse")
    short = [pair for pair in (*whole.training, *whole.held_out) if len(pair[0]) <= 5]
    data = dataclasses.replace(whole, training=tuple(short[200:]), held_out=tuple(short[:200]))
    torch.manual_seed(0)
    model = Seq2SeqTransformer(
        tokenizer=data.tokenizer,
        d_model=64,
        nhead=4,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dim_feedforward=64,
        dropout=0.0,
        max_positions=8,
    )
    trainer = make_trainer(model, default_config(model, batch_size=64, warm_up=50, learning_rate=5e-3))
    batches = PairFeed(model, data, trainer.config).batches(0)
    for _ in range(200):
        trainer.step(next(batches)[0])
    answers = model.generate([source for source, _ in data.held_out])
    right = sum(answer == target for answer, (_, target) in zip(answers, data.held_out, strict=True))
    assert right >= 180
