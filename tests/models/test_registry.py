"""A family of one's own: what it declares is all that training, files and the command line need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bigram import VERSE, Bigram, BigramConfig, BigramTrainer

from aigc_fast.errors import UserError
from aigc_fast.media import all_media, medium_of
from aigc_fast.models import MODELS, ByteTokenizer, LatentModel, create, load, register
from aigc_fast.training import MODEL_FILE, GANConfig, Trainer, default_config, make_trainer, train
from aigc_fast.training.trainer import trainer_of

BIGRAM = "import sys, bigram; from aigc_fast.models import register; register(bigram.Bigram); "


@pytest.fixture
def _registered():
    register(Bigram)
    yield
    del MODELS["bigram"]


def command(folder, *args):
    code = BIGRAM + f"sys.argv = {['aigc-fast', *map(str, args)]!r}; from aigc_fast.cli import main; main()"
    paths = [str(Path(__file__).parents[1]), *filter(None, sys.path)]
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"],
        capture_output=True,
        text=True,
        cwd=folder,
    )


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_declares_a_medium_and_a_trainer(name):
    model = MODELS[name]
    assert issubclass(model, medium_of(model).model)
    assert issubclass(trainer_of(model), Trainer)
    assert isinstance(default_config(model), trainer_of(model).config_type)
    assert model.family


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        *(("gpt2", "num_layers"), ("llama", "num_layers"), ("char-rnn", "num_layers")),
        *(("seq2seq", "num_encoder_layers"), ("seq2seq", "num_decoder_layers")),
    ],
)
def test_more_layers_than_any_model_has_are_refused_at_once(name, setting):
    with pytest.raises(UserError, match=rf"{setting}=100000000000: expected at most"):
        create(name, tokenizer=ByteTokenizer(), **{setting: 10**11})


@pytest.mark.usefixtures("_registered")
def test_a_family_without_a_latent_is_trained_saved_and_loaded(tmp_path):
    assert not issubclass(Bigram, LatentModel)
    assert list(all_media()) == ["images", "audio", "text", "pairs", "video", "verse"]
    model, config = Bigram(), default_config(Bigram, steps=6, sample_interval=3, checkpoint_interval=2)
    assert type(config) is BigramConfig
    assert type(make_trainer(model, config)) is BigramTrainer
    with pytest.raises(TypeError, match="GANConfig does not suit a Bigram"):
        make_trainer(model, GANConfig())
    result = train(model, VERSE.load(None), config, tmp_path)
    assert [row["step"] for row in result.rows] == [6]
    record = VERSE.read_provenance(tmp_path / "samples" / "step-00000003.lines")
    assert (record.model, record.settings["step"]) == ("bigram", 3)
    assert torch.equal(load(tmp_path / MODEL_FILE).counts, model.counts)
    resumed = train(Bigram(), VERSE.load(None), config, tmp_path, resume=True)
    assert torch.equal(resumed.model.counts, model.counts)
    train(Bigram(), VERSE.load(None), default_config(Bigram, steps=1, sample_interval=0), tmp_path, overwrite=True)
    assert list((tmp_path / "samples").iterdir()) == []


def test_the_command_line_reads_what_a_family_declares(tmp_path):
    shown = command(tmp_path, "train", "--help").stdout
    for words in (
        "bigrams only",
        "--decay",
        "--line-length",
        "[default: 64; 16 for vocoder and transformers and video; 32 for character models; 8 for bigrams]",
    ):
        assert " ".join(words.split()) in " ".join(shown.replace("│", " ").split()), words
    trained = command(tmp_path, "train", "bigram", "--steps", "4", "--decay", "0", "--line-length", "6")
    assert trained.returncode == 0, trained.stderr
    assert "4 steps on 40 lines of lines" in trained.stdout
    refused = command(tmp_path, "train", "bigram", "--size", "5")
    assert refused.stderr == "aigc-fast: error: --size: bigram has no such setting\n"
    made = command(tmp_path, "generate", "verse", "--count", "2")
    assert made.stdout == "Wrote out/bigram-page-count-2.lines\n", made.stderr
    assert (tmp_path / "out" / "bigram-page-count-2.lines").read_text().startswith("bcdabc/bcdabc\n")
    measured = command(tmp_path, "evaluate", "runs/bigram", "--json")
    assert measured.returncode == 0, measured.stderr
    assert '"count": 7' in measured.stdout
    told = command(tmp_path, "provenance", "out/bigram-page-count-2.lines")
    assert json.loads(told.stdout)["model"] == "bigram"
