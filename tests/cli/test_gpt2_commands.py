"""GPT-2 at the command line: training, writing, and models of Hugging Face folders and GGUF files."""

from __future__ import annotations

import json
import shlex

import pytest
from commands import assert_goes_on, assert_refused, run

from aigc_fast.generation import read_text_provenance
from aigc_fast.models import GPT2, load
from aigc_fast.runtime import native
from aigc_fast.training.decoders import DecoderTrainer

STORY = "The cat sat on the mat. The dog sat on the log.\n" * 20
SHAPE = ["--hidden", "12", "--num-layers", "1", "--num-heads", "2", "--context", "16", "--vocab-size", "270"]
SMALL = [*SHAPE, "--batch-size", "2", "--steps", "4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        (folder / f"{index}.txt").write_text(STORY[index:])
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run."""
    folder = tmp_path_factory.mktemp("runs") / "gpt2"
    result = run("train", "gpt2", *SMALL, "--data", corpus, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A Hugging Face folder."""
    path = tmp_path_factory.mktemp("models") / "small-1.5"
    load(trained / "model.safetensors").save_pretrained(path)
    return path


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_training_tells_loss_and_bits_and_leaves_samples(corpus, tmp_path, model):
    result = run("train", model, *SMALL, "--data", corpus, "--out", tmp_path, "--weight-decay", "0", "--warm-up", "2")
    assert result.exit_code == 0, result.output
    for word in ("SHA-256", "tokens/s", "loss", "bits", "held_out"):
        assert word in result.stdout
    found = load(tmp_path / "model.safetensors")
    assert found.config["tokenizer"]["kind"] == "subwords"
    assert found.tokenizer.vocab_size <= 270
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000004.txt",
        "step-00000004.txt.json",
    ]


def test_other_tokenizers_suit_as_well(corpus, tmp_path):
    args = ["--tokenizer", "characters", *SMALL[:-6], "--batch-size", "2", "--steps", "2"]
    result = run("train", "gpt2", *args, "--data", corpus, "--out", tmp_path / "gpt2")
    assert result.exit_code == 0, result.output
    refused = run("train", "char-rnn", "--vocab-size", "300", "--data", corpus, "--out", tmp_path / "a")
    assert_refused(refused, "vocab_size=300: expected tokenizer='subwords'")
    tokens = ["--tokenizer", "subwords", "--vocab-size", "300", "--steps", "2", "--hidden", "8", "--chunk", "16"]
    result = run("train", "char-rnn", *tokens, "--data", corpus, "--out", tmp_path / "char-rnn")
    assert result.exit_code == 0, result.output


def test_an_interrupted_training_goes_on(corpus, tmp_path):
    samples = "samples/step-00000004.txt", "samples/step-00000004.txt.json"
    assert_goes_on(tmp_path, DecoderTrainer, ["gpt2", *SMALL, "--dropout", "0.5", "--data", corpus], *samples)


@pytest.mark.parametrize("subject", ["trained", "folder"])
@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "0.8", "--top-k", "9", "--repetition-penalty", "1.2", "--min-p", "0.01"],
        ["--num-beams", "5", "--no-repeat-ngram-size", "2"],
        ["--weights", "int8", "--temperature", "0"],
    ],
)
def test_text_is_written_told_and_comes_again(request, tmp_path, subject, options):
    subject, path = request.getfixturevalue(subject), tmp_path / "a.txt"
    args = ["--prompt", "The cat", "--length", "12", *options]
    result = run("generate", subject, *args, "--out", path)
    assert result.exit_code == 0, result.output
    text = path.read_text(encoding="utf-8")
    assert text.startswith("The cat")
    assert len(result.stdout) == len(f"{text}\n")
    assert result.stderr.startswith(f"Wrote {path}; ")
    assert " tokens/s, the first after " in result.stderr
    record = read_text_provenance(path)
    assert record.model == "gpt2"
    assert record.settings["model_checksum"]
    assert len((tmp_path / "a.txt.json").read_text()) < 5000
    command = shlex.split(record.settings["command"])
    assert run("generate", subject, *command[3:], "--out", tmp_path / "b.txt").exit_code == 0
    assert (tmp_path / "b.txt").read_bytes() == path.read_bytes()


def test_the_length_may_pass_the_context(trained, tmp_path):
    result = run("generate", trained, "--length", "60", "--out", tmp_path / "a.txt")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("subject", ["trained", "folder"])
def test_models_are_evaluated(request, corpus, subject):
    result = run("evaluate", request.getfixturevalue(subject), "--data", corpus, "--count", "6", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["perplexity_per_byte"] > 1


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("subject", ["trained", "folder"])
@pytest.mark.parametrize("weights", ["bf16", "int8", "int4"])
def test_what_other_weights_change_is_told(request, corpus, subject, weights):
    args = ["--data", corpus, "--count", "6", "--weights", weights]
    result = run("evaluate", request.getfixturevalue(subject), *args, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["weights"] == weights
    assert found["divergence"] > 0
    assert 0 < found["agreement"] <= 1
    assert found["bits_per_byte"] == pytest.approx(found["bits_per_byte_as_they_are"], rel=0.05)
    assert found["perplexity_per_token"] == pytest.approx(found["perplexity_per_token_as_they_are"], rel=0.1)


def test_gguf_files_are_models_too(trained, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed")
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF no more")
    assert_refused(run("generate", path, "--out", tmp_path / "a.txt"), "a.gguf: the file is damaged")


def test_bad_input_is_told(trained, folder, corpus, tmp_path):
    out = ["--out", tmp_path / "a.txt"]
    assert_refused(
        run("generate", trained, "--num-beams", "2", "--top-k", "3", *out), "num_beams=2: beam search does not sample"
    )
    assert_refused(
        run("generate", trained, "--prompt", "cat " * 30, "--num-beams", "2", *out), "leave no room in the 16"
    )
    assert_refused(run("train", "gpt2", *SHAPE, "--context", "9999", "--data", corpus, "--out", tmp_path), "--context")
    assert_refused(run("train", "gpt2", "--num-heads", "5", "--data", corpus, "--out", tmp_path), "num_heads=5")
    assert_refused(run("train", "gpt2", "--chunk", "5", "--data", corpus, "--out", tmp_path), "chunk")
    ngram = run("train", "ngram", "--data", corpus, "--out", tmp_path / "ngram")
    assert ngram.exit_code == 0, ngram.output
    refused = run("generate", tmp_path / "ngram", "--num-beams", "2", "--out", tmp_path / "b.txt")
    assert_refused(refused, "num_beams: ngram has no such setting")
    (folder / "config.json").write_text("{}")
    assert_refused(run("generate", folder, *out), "model_type is None")


def test_help_tells_who_has_a_setting():
    shown = " ".join(run("train", "--help").stdout.replace("│", " ").split())
    headings = "transformers and character models only", "transformers only", "VAEs, vocoder and video only"
    for words in (*headings, "--num-heads", "--warm-up"):
        assert words in shown


def test_the_settings_of_the_seeds_have_their_names(trained):
    model = load(trained / "model.safetensors")
    assert isinstance(model, GPT2)
    text = model.generate("The cat", max_length=16, num_beams=5, no_repeat_ngram_size=2)
    assert text.startswith("The cat")
