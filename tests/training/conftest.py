"""Small data and small runs."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Iterator

import pytest
import torch

from aigc_fast.data import ImageDataset, PairDataset, SoundDataset, TextDataset, VideoDataset
from aigc_fast.media import medium_of
from aigc_fast.models import MODELS, CharTokenizer, create
from aigc_fast.training import default_config, train

NARROW = {
    "mlp-gan": {"hidden": 8, "dropout": 0.3},
    "dcgan": {"width": 3, "spectral_norm": True},
    "vae": {"hidden": 8},
    "conv-vae": {"width": 3, "likelihood": "gaussian"},
    "vocoder": {"width": 4, "latent_dim": 3},
    "ngram": {"order": 3},
    "char-rnn": {"hidden": 7, "embedding": 4},
    "gpt2": {"hidden": 8, "num_layers": 2, "num_heads": 2, "context": 8},
    "llama": {"hidden": 8, "num_layers": 2, "num_heads": 2, "context": 8},
    "seq2seq": {
        "d_model": 8,
        "nhead": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
        "dim_feedforward": 12,
        "max_positions": 12,
    },
    "video": {"width": 3, "hidden": 4, "latent_dim": 2, "core": "latent", "given": 2},
}


@pytest.fixture(autouse=True)
def _nothing_handles_signals() -> Iterator[None]:
    """Whoever started the tests may have them ignored, as nohup does SIGHUP."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageDataset(images, torch.arange(50) % 3, ("a", "b", "c"), "noise")


@pytest.fixture(scope="session")
def sounds():
    generator = torch.Generator().manual_seed(0)
    audio = torch.rand(20, 700, generator=generator) - 0.5
    return SoundDataset(audio, torch.arange(20) % 3, ("a", "b", "c"), 8000, "hiss")


@pytest.fixture(scope="session")
def texts():
    training = tuple("the cat sat on the mat, and the dog on the log.\n"[start:] * 2 for start in range(5))
    tokenizer = CharTokenizer.of(training, unknown=True)
    return TextDataset(training, ("the dog sat on the cat.\n", "that is that"), tokenizer, "0" * 64, "sayings")


@pytest.fixture(scope="session")
def pairs():
    words = [f"{first}{second}{third}" for first in "abc" for second in "def" for third in "ghi"]
    found = tuple((word, word[::-1]) for word in words)
    return PairDataset(found[:20], found[20:], CharTokenizer("abcdefghi", unknown=True), "0" * 64, "words")


@pytest.fixture(scope="session")
def clips():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (24, 4, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(24) % 3
    return VideoDataset(frames[4:], labels[4:], ("a", "b", "c"), frames[:4], labels[:4], 10.0, "flicker")


@pytest.fixture
def data_of(dataset, sounds, texts, pairs, clips):
    """A data set that suits a model, by the model's name."""
    of_medium = {
        SoundDataset.unit: sounds,
        TextDataset.unit: texts,
        PairDataset.unit: pairs,
        VideoDataset.unit: clips,
    }
    return lambda name: of_medium.get(medium_of(MODELS[name]).unit, dataset)


@pytest.fixture
def small(data_of):
    """A fresh small model: small("vae", num_classes=3)."""

    def make(name, **config):
        torch.manual_seed(1)
        return create(name, **data_of(name).shape, **config, **NARROW[name])

    return make


@pytest.fixture
def run(data_of, small):
    """Trains a fresh small model: run(folder, name="vae", resume=..., steps=...)."""

    def start(folder, name="vae", data=None, conditional=False, dtype=torch.float32, **settings):
        data = data or data_of(name)
        model = small(name, **({"num_classes": 3} if conditional else {})).to(dtype)
        defaults = {"steps": 12, "batch_size": 8, "sample_interval": 0, "checkpoint_interval": 5, "log_interval": 3}
        options = {key: settings.pop(key) for key in ("callbacks", "resume", "overwrite") if key in settings}
        config = default_config(model, **{**defaults, **settings})
        return train(model, data, config, folder, **options)

    return start


@pytest.fixture
def snapshot():
    """Every file of a folder with its content's hash."""

    def take(folder):
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return take
