"""Text at the command line: training, writing with a record beside, and measuring."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex

import pytest
from commands import assert_goes_on, assert_refused, run, tree

from aigc_fast.generation import read_text_provenance
from aigc_fast.models import load
from aigc_fast.training.text import CharRNNTrainer

STORY = "The cat sat on the mat. The dog sat on the log.\n" * 20
SMALL = ["--hidden", "8", "--embedding", "4", "--batch-size", "2", "--chunk", "16", "--steps", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        (folder / f"{index}.txt").write_text(STORY[index:])
    return folder


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory):
    """A folder of runs."""
    folder = tmp_path_factory.mktemp("runs")
    for args in (["char-rnn", *SMALL], ["ngram", "--order", "4"]):
        result = run("train", *args, "--data", corpus, "--out", folder / args[0])
        assert result.exit_code == 0, result.output
    return folder


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("cell", ["rnn", "gru", "elman"])
def test_training_tells_the_corpus_and_leaves_samples(corpus, tmp_path, cell):
    result = run("train", "char-rnn", *SMALL, "--cell", cell, "--data", corpus, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(corpus.iterdir()))).hexdigest()
    assert f"SHA-256 {digest[:12]}" in result.stdout
    assert "characters/s" in result.stdout
    assert "held_out" in result.stdout
    assert load(tmp_path / "model.safetensors").config["cell"] == cell
    assert files(tmp_path / "samples") == ["step-00000004.txt", "step-00000004.txt.json"]
    refused = run("train", "char-rnn", *SMALL, "--cell", cell, "--data", corpus, "--out", tmp_path, "--seed", "1")
    assert_refused(refused, "holds a run already")
    replaced = run("train", "ngram", "--data", corpus, "--out", tmp_path, "--overwrite")
    assert replaced.exit_code == 0, replaced.output
    assert files(tmp_path / "samples") == ["step-00000001.txt", "step-00000001.txt.json"]


@pytest.mark.parametrize(
    "args", [["--tokenizer", "bytes"], ["--num-layers", "2", "--dropout", "0.5"], ["--tied", "--embedding", "8"]]
)
def test_models_of_other_shapes_write_too(corpus, tmp_path, args):
    trained = run("train", "char-rnn", *SMALL, *args, "--data", corpus, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    made = run("generate", tmp_path / "run", "--prompt", "The", "--length", "30", "--out", tmp_path / "a.txt")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").startswith("The")


def test_an_interrupted_training_goes_on(corpus, tmp_path):
    samples = "samples/step-00000004.txt", "samples/step-00000004.txt.json"
    assert_goes_on(tmp_path, CharRNNTrainer, ["char-rnn", *SMALL, "--data", corpus], *samples)


@pytest.mark.parametrize("model", ["char-rnn", "ngram"])
def test_text_is_shown_written_and_comes_again(runs, tmp_path, model):
    path = tmp_path / "a.txt"
    args = ["--prompt", "The cat's", "--length", "60", "--temperature", "0.8", "--top-k", "5", "--seed", "3"]
    if model == "char-rnn":
        args += ["--prompt", "The cat"]
    result = run("generate", runs / model, *args, "--out", path)
    if model == "ngram":
        assert_refused(result, 'unknown "\'"')
        args += ["--prompt", "The cat"]
        result = run("generate", runs / model, *args, "--out", path)
    assert result.exit_code == 0, result.output
    text = path.read_text()
    assert text.startswith("The cat")
    assert len(text) <= len("The cat") + 60
    assert result.stdout == f"{text}\n"
    assert result.stderr == f"Wrote {path}\n"
    assert files(tmp_path) == ["a.txt", "a.txt.json"]
    record = read_text_provenance(path)
    assert (record.model, record.seed) == (model, 3)
    assert record.settings["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.settings["prompt"] == "The cat"
    assert record.settings["model_checksum"] == load(runs / model / "model.safetensors").metadata["checksum"]
    for shown in (path, tmp_path / "a.txt.json"):
        assert json.loads(run("provenance", shown).stdout)["settings"] == record.settings
    command = shlex.split(record.settings["command"])
    again = run("generate", runs / model, *command[3:], "--out", tmp_path / "b.txt")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.txt").read_text() == text
    other = run("generate", runs / model, *args, "--seed", "4", "--out", tmp_path / "c.txt")
    assert other.exit_code == 0
    assert (tmp_path / "c.txt").read_text() != text


def test_an_empty_prompt_begins_a_document(runs, tmp_path):
    for name, args in (("a.txt", []), ("b.txt", ["--prompt", ""])):
        result = run("generate", runs / "ngram", "--length", "30", *args, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    text = (tmp_path / "a.txt").read_text()
    assert text == (tmp_path / "b.txt").read_text()
    assert text[:1] in "The "


def test_text_ends_before_a_stop(runs, tmp_path):
    args = ["generate", runs / "ngram", "--prompt", "The", "--temperature", "0", "--length", "40"]
    assert run(*args, "--out", tmp_path / "a.txt").exit_code == 0
    assert run(*args, "--stop", " on", "--out", tmp_path / "b.txt").exit_code == 0
    whole, cut = ((tmp_path / name).read_text() for name in ("a.txt", "b.txt"))
    assert cut == whole.partition(" on")[0] != whole


def test_several_texts_in_files_of_their_own_or_in_one(runs, tmp_path):
    args = ["generate", runs / "char-rnn", "--count", "2", "--length", "20"]
    assert run(*args, "--what", "single", "--out", tmp_path / "each").exit_code == 0
    assert files(tmp_path / "each") == ["0.txt", "0.txt.json", "1.txt", "1.txt.json"]
    assert run(*args, "--out", tmp_path / "all.txt").exit_code == 0
    each = [(tmp_path / "each" / f"{index}.txt").read_text() for index in range(2)]
    assert (tmp_path / "all.txt").read_text() == "\n\n* * *\n\n".join(each)
    assert read_text_provenance(tmp_path / "each" / "1.txt").settings["index"] == 1


def test_the_newest_model_of_text_writes_where_its_name_says(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(runs, tmp_path / "runs")
    result = run("generate", "text", "--length", "5", "--prompt", "The cat sat on the mat. The dog sat on the log.")
    assert result.exit_code == 0, result.output
    (name,) = [name for name in files(tmp_path / "out") if name.endswith(".txt")]
    assert name.startswith("ngram-passage-prompt-The_cat_sat_on")
    assert name.endswith("-length-5.txt")


def test_control_characters_are_not_sent_to_the_terminal(tmp_path):
    (tmp_path / "data.txt").write_text("a\x1b[2Jb\tc\n" * 200)
    assert run("train", "ngram", "--data", tmp_path / "data.txt", "--out", tmp_path / "run").exit_code == 0
    result = run("generate", tmp_path / "run", "--length", "50", "--out", tmp_path / "a.txt")
    assert "\x1b" not in result.stdout
    assert "\x1b" in (tmp_path / "a.txt").read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", "Ünder"], ["unknown", "U+00DC"]),
        (["--temperature", "-1"], ["temperature=-1"]),
        (["--temperature", "nan"], ["temperature=nan"]),
        (["--top-k", "0"], ["--top-k"]),
        (["--top-p", "0"], ["top_p=0"]),
        (["--top-p", "1.1"], ["top_p=1.1"]),
        (["--length", "0"], ["--length"]),
        (["--length", "many"], ["--length"]),
        (["--stop", ""], ["stop=''"]),
        (["--class", "1"], ["--class", "without classes"]),
        (["--columns", "3"], ["--columns: char-rnn makes documents, which have none"]),
        (["--scale", "2"], ["--scale"]),
        (["--what", "grid"], ["grid", "passage, single"]),
        (["--out", "a.png"], ["a.png", ".txt"]),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(runs, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("generate", runs / "char-rnn", "--out", "b.txt", *args), *words)
    assert os.listdir(tmp_path) == []


def test_options_of_text_are_refused_by_other_media(model_files, tmp_path):
    refused = run("generate", model_files["vocoder"], "--prompt", "a", "--out", tmp_path / "a.wav")
    assert_refused(refused, "--prompt: vocoder makes sounds, not text")
    assert os.listdir(tmp_path) == []


def test_files_that_are_there_are_kept(runs, tmp_path):
    for name in ("a.txt", "a.txt.json"):
        (tmp_path / name).write_text("mine")
        assert_refused(run("generate", runs / "ngram", "--out", tmp_path / "a.txt"), name, "--overwrite")
        assert tree(tmp_path) == {next(iter(tree(tmp_path))): b"mine"}
        (tmp_path / name).unlink()


def test_an_edited_text_and_one_without_a_record_are_told(runs, tmp_path):
    path = tmp_path / "a.txt"
    assert run("generate", runs / "ngram", "--length", "20", "--out", path).exit_code == 0
    path.write_text(path.read_text() + "!")
    assert_refused(run("provenance", path), "a.txt: differs from the text that a.txt.json describes: it was edited")
    (tmp_path / "a.txt.json").write_text("{")
    assert_refused(run("provenance", path), "a.txt.json: the record of aigc_fast is damaged")
    (tmp_path / "a.txt.json").unlink()
    assert_refused(run("provenance", path), "a.txt has no record of aigc_fast beside it")
    assert_refused(run("provenance", tmp_path / "none.txt"), "none.txt: cannot be read: No such file")


@pytest.mark.parametrize(
    ("content", "args", "words"),
    [
        (b"", [], ["holds no text"]),
        (b" \n", [], ["holds no text"]),
        (b"caf\xe9", [], ["expected UTF-8", "--encoding latin-1"]),
        (b"short text", [], ["characters are less than the 64", "--chunk"]),
        (STORY.encode(), ["--cell", "qrnn"], ["cell='qrnn'", "rnn, lstm, gru, elman"]),
        (STORY.encode(), ["--dropout", "1"], ["dropout=1"]),
        (STORY.encode(), ["--tokenizer", "words"], ["tokenizer='words'"]),
        (STORY.encode(), ["--held-out", "1"], ["held_out=1"]),
        (STORY.encode(), ["--encoding", "klingon"], ["encoding='klingon'"]),
        (STORY.encode(), ["--conditional"], ["--conditional", "has no classes"]),
        (STORY.encode(), ["--size", "8"], ["--size: char-rnn has no such setting"]),
        (STORY.encode(), ["--order", "3"], ["--order: char-rnn has no such setting"]),
        (STORY.encode(), ["--shift", "1"], ["shift=1"]),
    ],
)
def test_bad_text_and_settings_are_one_line_and_leave_nothing(tmp_path, content, args, words):
    (tmp_path / "data.txt").write_bytes(content)
    refused = run("train", "char-rnn", "--data", tmp_path / "data.txt", *args, "--out", tmp_path / "run")
    assert_refused(refused, *words)
    assert files(tmp_path) == ["data.txt"]


def test_latin_1_is_read_where_it_is_named(tmp_path):
    (tmp_path / "data.txt").write_bytes(("café au lait\n" * 50).encode("latin-1"))
    args = ["--data", tmp_path / "data.txt", "--encoding", "latin-1", "--out", tmp_path / "run"]
    assert run("train", "ngram", *args).exit_code == 0
    assert load(tmp_path / "run" / "model.safetensors").score("café") < 0


def test_models_are_measured_on_text_that_was_held_out(runs, corpus):
    found = {}
    for model in ("char-rnn", "ngram"):
        measured = run("evaluate", runs / model, "--data", corpus, "--count", "6", "--json")
        assert measured.exit_code == 0, measured.output
        found[model] = json.loads(measured.stdout)
    for report in found.values():
        assert report["count"] == 6
        assert report["perplexity_per_character"] > 1
        assert 0 <= report["copied"] <= 1
    assert found["ngram"]["bits_per_character"] < found["char-rnn"]["bits_per_character"]
    shown = run("evaluate", runs / "ngram", "--data", corpus, "--count", "6")
    for words in ("6 documents against", "Perplexity per character", "Perplexity per byte", "Longest copied passage"):
        assert words in shown.stdout


def test_the_share_that_was_held_out_is_remembered(tmp_path, monkeypatch):
    topics = {f"topic {index}": f"{index} is a number.\n" * 40 for index in range(10)}
    monkeypatch.setattr("pydoc_data.topics.topics", topics)
    assert run("train", "ngram", "--held-out", "0.35", "--out", tmp_path).exit_code == 0
    measured = run("evaluate", tmp_path, "--count", "6")
    assert measured.exit_code == 0, measured.output
    assert "6 documents against 7 of Python's help topics" in measured.stdout
    refused = run("evaluate", tmp_path, "--count", "6", "--held-out", "0.2")
    assert_refused(refused, "was trained on Python's help topics (7 documents)", "--data")


def test_a_folder_of_texts_is_measured_without_a_model(runs, corpus, tmp_path):
    args = ["--what", "single", "--count", "6", "--length", "200", "--out", tmp_path / "texts"]
    assert run("generate", runs / "ngram", *args).exit_code == 0
    shown = run("evaluate", tmp_path / "texts", "--data", corpus)
    assert shown.exit_code == 0, shown.output
    assert "Longest copied passage" in shown.stdout
    assert "Perplexity" not in shown.stdout


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
def test_how_weights_are_kept(runs, corpus, tmp_path, weights):
    model = runs / "char-rnn" / "model.safetensors"
    result = run("evaluate", model, "--data", corpus, "--count", "6", "--weights", weights, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["bits_per_character"] == pytest.approx(found["bits_per_character_as_they_are"], rel=0.05)
    assert (found["bits_per_character"] == found["bits_per_character_as_they_are"]) == (weights == "fp32")
    shown = run("evaluate", model, "--data", corpus, "--count", "6", "--weights", weights)
    for name, value in (
        ("How weights are kept", weights),
        ("Perplexity per token", f"{found['perplexity_per_token']:.4f}"),
        ("Divergence in nats per token", f"{found['divergence']:.6f}"),
        ("Same most probable token", f"{found['agreement']:.4f}"),
    ):
        assert re.search(rf"{name} +{value} ", shown.stdout), shown.stdout
    drawn = run("generate", model, "--weights", weights, "--length", "9", "--out", tmp_path / "a.txt")
    assert drawn.exit_code == 0, drawn.output
    assert f"--weights {weights}" in read_text_provenance(tmp_path / "a.txt").settings["command"]


def test_weights_that_cannot_be_kept(runs, corpus, tmp_path):
    model = runs / "char-rnn" / "model.safetensors"
    for command in (["evaluate", "--count", "6", "--data", corpus], ["generate", "--out", tmp_path / "a.txt"]):
        name, *options = command
        assert_refused(run(name, model, *options, "--weights", "int3"), "weights='int3': expected None or one of")
        ngram = run(name, runs / "ngram" / "model.safetensors", *options, "--weights", "int8")
        assert_refused(ngram, "weights='int8': ngram uses its weights as they are")
    folder = run("evaluate", corpus, "--data", corpus, "--weights", "int8")
    assert_refused(folder, "is no model of texts")
