"""Training of character models and n-grams: what a step reads, what goes on from step to step, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from aigc_fast.errors import UserError
from aigc_fast.generation import read_text_provenance
from aigc_fast.media.text import ChunkFeed
from aigc_fast.models import CharRNN, create, load
from aigc_fast.training import TrainingInterrupted, default_config, make_trainer, train

CELLS = ("rnn", "lstm", "gru", "elman")


def model_of(dataset, cell="lstm", **config):
    torch.manual_seed(1)
    return CharRNN(tokenizer=dataset.tokenizer, cell=cell, hidden=7, embedding=4, **{"dropout": 0.0, **config})


def parts_of(chunk):
    """The parts of a chunk as lists of tokens, what follows each, and where their states come from and go to."""
    parts = [[] for _ in range(int(chunk.tokens.batch_sizes[0]))]
    followers = [[] for _ in parts]
    tokens, targets = chunk.tokens.data.tolist(), chunk.targets.tolist()
    for size in chunk.tokens.batch_sizes.tolist():
        for row in range(size):
            parts[row].append(tokens.pop(0))
            followers[row].append(targets.pop(0))
    return parts, followers, chunk.before.tolist(), chunk.after.tolist()


def test_a_pass_reads_every_token_once_and_cuts_where_documents_begin(texts):
    model = model_of(texts)
    config = default_config(model, batch_size=3, chunk=8)
    feed, boundary = ChunkFeed(model, texts, config), texts.tokenizer.boundary
    size = sum(len(document) + 1 for document in texts.training)
    read, open_places = [[], [], []], set()
    batches = feed.batches(0)
    for step in range(feed.epoch_steps):
        parts, followers, before, after = parts_of(next(batches)[0])
        rows = [place for place in before if place < 3]
        assert sorted(rows) == ([] if step == 0 else sorted(open_places))
        for part, following in zip(parts, followers, strict=True):
            assert boundary not in part[1:]
            assert following[:-1] == part[1:]
        for part, place in zip(parts, before, strict=True):
            assert (part[0] == boundary) <= (place == 3)
        read[0] += [token for part in parts for token in part]
        assert len(after) == 3
        open_places = {place for place in range(3) if following_of(followers[after[place]]) != boundary}
    assert len(read[0]) == 3 * (size // 3)
    everything = [token for document in texts.training for token in [boundary, *texts.tokenizer.encode(document)]]
    missing = sorted(everything)
    for token in read[0]:
        missing.remove(token)
    assert len(missing) == size % 3


def following_of(targets):
    return targets[-1]


def test_what_a_step_reads_depends_on_the_seed_and_the_step_alone(texts):
    model = model_of(texts)
    feed = ChunkFeed(model, texts, default_config(model, batch_size=2, chunk=8))
    several = feed.batches(0)
    for step in range(2 * feed.epoch_steps):
        chunk, again = next(several).inputs, next(feed.batches(step)).inputs
        assert torch.equal(chunk.tokens.data, again.tokens.data)
        assert torch.equal(chunk.targets, again.targets)
    other = ChunkFeed(model, texts, default_config(model, batch_size=2, chunk=8, seed=7))
    assert not torch.equal(next(feed.batches(0))[0].tokens.data, next(other.batches(0))[0].tokens.data)


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_goes_on_within_a_document_and_not_beyond(texts, cell):
    """Whatever the chunks, the bits are those of whole documents."""
    model = model_of(texts, cell)
    config = default_config(model, batch_size=1, chunk=5, learning_rate=1e-30, epochs=1)
    feed, trainer = ChunkFeed(model, texts, config), make_trainer(model, config)
    batches, total = feed.batches(0), 0.0
    for _ in range(feed.epoch_steps):
        chunk = next(batches).inputs
        total += trainer.step(chunk)["bits"] * chunk.characters * len(chunk.targets) * math.log(2)
    expected = -sum(model.score(document) for document in texts.training)
    assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_a_resumed_run_of_any_cell_is_the_uninterrupted_one(texts, tmp_path, cell):
    def trained(name, stop=None, resume=False):
        model = model_of(texts, cell, dropout=0.4)
        config = default_config(
            model, steps=9, batch_size=2, chunk=6, checkpoint_interval=4, measure_interval=2, sample_interval=3
        )

        def interrupt(step, values):
            if step == stop:
                import signal

                signal.raise_signal(signal.SIGINT)

        return train(model, texts, config, tmp_path / name, resume=resume, callbacks=(interrupt,))

    whole = trained("whole")
    with pytest.raises(TrainingInterrupted):
        trained("parts", stop=5)
    parts = trained("parts", resume=True)
    assert parts.rows == whole.rows
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    samples = sorted(path.name for path in (tmp_path / "whole" / "samples").iterdir())
    assert samples == [f"step-0000000{step}.{kind}" for step in (3, 6, 9) for kind in ("txt", "txt.json")]
    for name in samples:
        assert (tmp_path / "parts" / "samples" / name).read_bytes() == (
            tmp_path / "whole" / "samples" / name
        ).read_bytes()
    record = read_text_provenance(tmp_path / "parts" / "samples" / samples[0])
    assert (record.model, record.settings["step"]) == ("char-rnn", 3)


def test_bits_fall_and_those_of_held_out_text_are_measured(texts, tmp_path):
    model = model_of(texts)
    config = default_config(model, steps=40, batch_size=2, chunk=16, log_interval=10, measure_interval=20)
    rows = train(model, texts, config, tmp_path).rows
    assert rows[-1]["bits"] < rows[0]["bits"]
    assert [row["step"] for row in rows if "held_out" in row] == [20, 40]
    characters = sum(map(len, texts.held_out))
    expected = -sum(map(model.score, texts.held_out)) / math.log(2) / characters
    assert rows[-1]["held_out"] == pytest.approx(expected, rel=1e-5)


def test_bits_are_of_characters_also_where_tokens_are_bytes(texts, tmp_path):
    from aigc_fast.models import ByteTokenizer

    model = CharRNN(tokenizer=ByteTokenizer(), hidden=4, embedding=3)
    data = type(texts)(("é" * 50,), (), ByteTokenizer(), "0" * 64, "accents")
    feed = ChunkFeed(model, data, default_config(model, batch_size=1, chunk=10))
    assert feed.unit == "bytes"
    assert next(feed.batches(0))[0].characters == 50 / 101
    assert "held_out" not in train(model, data, default_config(model, steps=2), tmp_path).rows[-1]


def test_the_learning_rate_halves_and_gradients_are_clipped(texts):
    model = model_of(texts)
    config = default_config(model, batch_size=1, chunk=8, learning_rate=0.5, half_life=0.5, clip=1e-3)
    feed, trainer = ChunkFeed(model, texts, config), make_trainer(model, config)
    passes = [step / feed.epoch_steps for step in range(3)]
    batches, rates = feed.batches(0), []
    for _ in range(3):
        rates.append(trainer.step(next(batches)[0])["learning_rate"])
        norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
        assert norm <= 1.001e-3
    assert rates == pytest.approx([0.5 * 4.0**-share for share in passes])
    assert make_trainer(model, default_config(model, half_life=0, learning_rate=0.5)).learning_rate(9) == 0.5


def test_tensorboard_gets_samples_of_text(texts, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = model_of(texts)
    train(model, texts, default_config(model, steps=2, batch_size=2, chunk=8, tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (shown,) = events.Tensors("samples/text_summary")
    sample = (tmp_path / "samples" / "step-00000002.txt").read_text()
    expected = "\n".join(f"    {line}" for line in sample.split("\n"))
    assert shown.tensor_proto.string_val[0].decode().rstrip("\n ") == expected.rstrip("\n ")


def test_an_ngram_is_fitted_in_one_step(texts, tmp_path):
    model = create("ngram", tokenizer=texts.tokenizer, order=3)
    result = train(model, texts, default_config(model), tmp_path)
    assert result.steps == 1
    assert result.rows[-1].keys() == {"step", "bits", "held_out"}
    assert load(result.model_path).score("ab") == pytest.approx(model.score("ab"))
    assert load(result.model_path).score("ab") != create("ngram", tokenizer=texts.tokenizer, order=3).score("ab")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("chunk", 0), ("clip", 0.0), ("half_life", -1), ("measure_interval", -1), ("learning_rate", math.inf)],
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(UserError, match=rf"^{setting}={value}"):
        default_config(CharRNN, **{setting: value})


def test_less_text_than_a_step_reads_is_refused(texts, tmp_path):
    model = model_of(texts)
    with pytest.raises(UserError, match=r"sayings: \d+ characters are less than the 5000 that a step reads.*--chunk"):
        train(model, texts, default_config(model, chunk=5000), tmp_path)
    with pytest.raises(UserError, match="shift=1: it moves images"):
        train(model, texts, default_config(model, shift=1), tmp_path)
    assert list(tmp_path.iterdir()) == []
