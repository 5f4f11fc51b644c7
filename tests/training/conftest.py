"""Small data and small runs."""

from __future__ import annotations

import hashlib

import pytest
import torch

from aigc_fast.data import ImageDataset, SoundDataset
from aigc_fast.models import create
from aigc_fast.training import default_config, train

NARROW = {
    "mlp-gan": {"hidden": 8, "dropout": 0.3},
    "dcgan": {"width": 3, "spectral_norm": True},
    "vae": {"hidden": 8},
    "conv-vae": {"width": 3, "likelihood": "gaussian"},
    "vocoder": {"width": 4, "latent_dim": 3},
}


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


@pytest.fixture
def data_of(dataset, sounds):
    """A data set that suits a model, by the model's name."""
    return lambda name: sounds if name == "vocoder" else dataset


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
