"""The encoder-decoder at the command line: training, answering, measuring, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from commands import assert_goes_on, assert_refused, run

from aigc_fast.generation import read_text_provenance
from aigc_fast.models import load
from aigc_fast.training.seq2seq import Seq2SeqTrainer

SHAPE = ["--d-model", "8", "--nhead", "2", "--num-encoder-layers", "1", "--num-decoder-layers", "1"]
SHAPE += ["--dim-feedforward", "8", "--max-positions", "16", "--tokenizer", "characters"]
SMALL = [*SHAPE, "--batch-size", "4", "--steps", "4"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "words.tsv"
    words = [f"{first}{second}{third}" for first in "abc" for second in "def" for third in "ghi"]
    path.write_text("".join(f"{word}\t{word[::-1]}\n" for word in words))
    return path


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """A run."""
    folder = tmp_path_factory.mktemp("runs") / "words"
    result = run("train", "seq2seq", *SMALL, "--data", table, "--out", folder)
    assert result.exit_code == 0, result.output
    for word in ("24 pairs of words.tsv", "SHA-256", "pairs/s", "loss", "perplexity", "held_out"):
        assert word in result.stdout
    return folder


def test_training_leaves_samples_and_a_model(trained):
    names = sorted(path.name for path in (trained / "samples").iterdir())
    assert names == ["step-00000004.txt", "step-00000004.txt.json"]
    assert load(trained / "model.safetensors").config["d_model"] == 8


def test_an_interrupted_training_goes_on(table, tmp_path):
    args = ["seq2seq", *SMALL, "--data", table, "--sample-interval", "2", "--measure-interval", "2"]
    assert_goes_on(tmp_path, Seq2SeqTrainer, args, "samples/step-00000004.txt")


def test_two_files_and_settings_of_the_training(tmp_path):
    (tmp_path / "a.src").write_text("ab\nba\n\nabab\nbb\n")
    (tmp_path / "a.tgt").write_text("x\ny\nz\nxx\nyy\n")
    settings = [
        "--warm-up",
        "2",
        "--learning-rate-schedule",
        "constant",
        "--label-smoothing",
        "0",
        "--activation",
        "gelu",
    ]
    settings += ["--norm-first", "--clip", "0.5", "--learning-rate", "0.01"]
    args = ["--data", tmp_path / "a.src", "--targets", tmp_path / "a.tgt", "--out", tmp_path / "run"]
    result = run("train", "seq2seq", *SMALL, *settings, *args)
    assert result.exit_code == 0, result.output
    assert "1 pair left out, with an empty side: number 3" in result.stdout
    found = load(tmp_path / "run" / "model.safetensors")
    assert (found.config["activation"], found.config["norm_first"]) == ("gelu", True)
    assert found.metadata["training"]["learning_rate_schedule"] == "constant"


def test_sequences_by_name_whatever_files_are_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sort").mkdir()
    result = run("train", "seq2seq", *SMALL[:-1], "1", "--data", "sort", "--out", "run")
    assert result.exit_code == 0, result.output
    assert "27000 pairs of sequences to sort" in result.stdout
    for make in (lambda path: None, Path.rmdir, Path.touch):
        make(tmp_path / "sort")
        result = run("evaluate", "run", "--count", "6", "--num-beams", "1")
        assert result.exit_code == 0, result.output
        assert "6 pairs against 27000 of sequences to sort" in result.stdout


@pytest.mark.parametrize("options", [[], ["--num-beams", "1"], ["--temperature", "1.5", "--top-k", "4"]])
def test_a_prompt_is_answered_and_recorded(trained, tmp_path, options):
    target = tmp_path / "answer.txt"
    result = run("generate", trained, "--prompt", "adg", "--length", "7", "--seed", "3", *options, "--out", target)
    assert result.exit_code == 0, result.output
    assert target.read_text() in result.stdout
    record = read_text_provenance(target)
    assert (record.model, record.seed, record.settings["prompt"]) == ("seq2seq", 3, "adg")
    again = shlex.split(record.settings["command"])[2:]
    result = run("generate", trained / again[0], *again[1:], "--out", tmp_path / "again.txt")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.txt").read_text() == target.read_text()
    assert "tokens/s" in result.stderr


def test_examples_are_answered_where_nothing_is_asked(trained, tmp_path):
    result = run("generate", trained, "--out", tmp_path / "answers.txt")
    assert result.exit_code == 0, result.output
    examples = load(trained / "model.safetensors").metadata["data"]["examples"]
    assert len(examples) == 3
    assert (tmp_path / "answers.txt").read_text().count("\n") == 3
    for example in examples:
        assert f"{example}\n" in result.stdout


def test_a_file_of_sources_is_answered_line_by_line(trained, tmp_path):
    (tmp_path / "sources.txt").write_text("adg\nbeh\n")
    options = ["--sources", tmp_path / "sources.txt", "--num-beams", "3", "--no-repeat-ngram-size", "2"]
    result = run("generate", trained, *options, "--count", "2", "--out", tmp_path / "answers.txt")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "answers.txt").read_text().splitlines()
    model = load(trained / "model.safetensors")
    wanted = model.generate(["adg", "beh"], num_beams=3, no_repeat_ngram_size=2, num_return_sequences=2)
    assert lines == wanted


def test_a_model_is_measured_by_beams_and_greedily(trained, table):
    found = [run("evaluate", trained, "--data", table, "--json", *way) for way in ([], ["--num-beams", "1"])]
    for result in found:
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        assert (facts["count"], facts["training_count"]) == (3, 24)
        assert facts["perplexity"] > 1
    shown = run("evaluate", trained, "--data", table, "--num-beams", "2", "--length-penalty", "0.6")
    for words in ("Exact answers", "chrF", "BLEU", "Perplexity per token", "3 pairs against 24 of words.tsv"):
        assert words in shown.stdout


def test_files_that_training_can_not_read_leave_nothing(tmp_path):
    path = tmp_path / "a.jsonl"
    for text, words in (
        ('{"source": "a"', "line 1 is no JSON"),
        ("", "holds no pairs"),
        ('{"source": "a"}', "'target' is not there"),
    ):
        path.write_text(text)
        assert_refused(run("train", "seq2seq", *SMALL, "--data", path, "--out", tmp_path / "run"), path, words)
    path.write_text("a\nb\n")
    (tmp_path / "b").write_text("a\n")
    args = ["--data", path, "--targets", tmp_path / "b", "--out", tmp_path / "run"]
    assert_refused(run("train", "seq2seq", *SMALL, *args), "has 1 line: expected 2")
    assert not (tmp_path / "run").exists()


def test_pairs_longer_than_the_positions_are_told(tmp_path):
    (tmp_path / "a.tsv").write_text("a\tb\nb\tc\n" + "a" * 40 + "\tb\n")
    args = ["--data", tmp_path / "a.tsv", "--held-out", "0", "--out", tmp_path / "run"]
    result = run("train", "seq2seq", *SMALL, *args)
    assert result.exit_code == 0, result.output
    assert "Note: 1 pair left out, longer than 16 tokens" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", "xyz"], "unknown 'x'"),
        (["--prompt", "a" * 20], "a source of 21 tokens, with its end, is more than the 16"),
        (["--prompt", "a", "--sources", "b"], "got both"),
        (["--sources", "missing"], "missing: cannot be read"),
        (["--prompt", "a", "--stop", "b"], "--stop: seq2seq makes pairs, not text"),
        (
            ["--prompt", "a", "--num-beams", "2", "--temperature", "2"],
            "num_beams=2: beam search does not sample",
        ),
        (["--prompt", "a", "--what", "passage"], "--what passage: seq2seq makes answers"),
        (["--prompt", "a", "--columns", "2"], "--columns: seq2seq makes pairs"),
        (["--prompt", "a", "--length", "99"], "max_length=100: expected at most 17"),
    ],
)
def test_what_can_not_be_answered_is_refused(trained, tmp_path, args, words):
    assert_refused(run("generate", trained, *args, "--out", tmp_path / "answer.txt"), words)
    assert not (tmp_path / "answer.txt").exists()


def test_options_of_other_media_are_refused(trained, table, model_files):
    assert_refused(run("evaluate", trained, "--data", table, "--max-pixels", "9"), "holds pairs, not images")
    assert_refused(run("evaluate", model_files["conv-vae"], "--num-beams", "2"), "--num-beams", "holds images")
    result = run("evaluate", trained, "--data", table, "--held-out", "0")
    assert (result.exit_code, "nothing is held out" in result.stderr) == (2, True)
    assert_refused(run("evaluate", trained, "--data", table, "--weights", "int8"), "is no model of texts")
