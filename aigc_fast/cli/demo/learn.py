"""What the demo trains, and the images and figures that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from aigc_fast.data import Dataset, ImageDataset
from aigc_fast.generation import draw, image_grid, interpolate, latent_manifold, provenance_of, write_png
from aigc_fast.metrics import ImageReport, evaluate_images, nearest_neighbours, pairing_grid
from aigc_fast.models import ImageModel, VariationalAutoencoder, create
from aigc_fast.training import TrainingResult, default_config, train

PICTURES = {
    "dcgan": ("samples", "interpolation", "neighbours"),
    "conv-vae": ("samples", "interpolation", "neighbours", "manifold", "reconstructions"),
}
"""What is drawn of each model; the files are called MODEL-PICTURE.png."""
SEED = 42
MEASURED = 1000
SCALE = 2


@dataclass(frozen=True)
class Learned:
    """One trained model and what it gave.

    Attributes:
        result: the run's.
        pictures: PNG files by what they show.
        report: the metrics.
    """

    result: TrainingResult
    pictures: dict[str, Path]
    report: ImageReport


def learn(
    name: str,
    dataset: ImageDataset,
    steps: int,
    folder: Path,
    console: Console | None,
    config: Mapping[str, Any] = MappingProxyType({}),
    training: Mapping[str, Any] = MappingProxyType({}),
    device: torch.device | None = None,
) -> Learned:
    """Trains a model, draws its pictures and measures them.

    Args:
        name: of the model, one of `PICTURES`.
        dataset: what it learns from.
        steps: training steps.
        folder: gets the pictures, and the run in a folder of the model's name.
        console: where the progress bar goes.
        config: of the model.
        training: settings of its training.
        device: where it is trained; None for the CPU.
    """
    result = trained(name, dataset, steps, folder, console, config, training, device)
    generated = draw(result.model, MEASURED, seed=SEED).cpu()
    pictures = _pictures(result, dataset, generated, folder)
    return Learned(result, pictures, evaluate_images(generated, dataset.batch()))


def trained(
    name: str,
    dataset: Dataset,
    steps: int,
    folder: Path,
    console: Console | None,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    device: torch.device | None,
    run: str | None = None,
) -> TrainingResult:
    """A model of the data's shape after its training.

    The arguments are those of `learn`, and what the run's folder is called; None for the model's name.
    """
    torch.manual_seed(SEED)
    model = create(name, **dataset.shape, **config).to(device)
    interval = max(1, steps // 5)
    settings = default_config(
        model, steps=steps, seed=SEED, sample_interval=interval, checkpoint_interval=steps, **training
    )
    return train(model, dataset, settings, folder / (run or name), overwrite=True, console=console)


def _pictures(result: TrainingResult, dataset: ImageDataset, generated: Tensor, folder: Path) -> dict[str, Path]:
    model, training = result.model, dataset.batch()
    ends = {"labels": [0, 3, 6], "to_labels": [1, 4, 7]} if model.num_classes else {}
    shown = generated[:20]
    grids: dict[str, Callable[[], Tensor]] = {
        "samples": lambda: image_grid(generated[:80], 10),
        "interpolation": lambda: image_grid(interpolate(model, 10, rows=3, seed=SEED, **ends), 10),
        "neighbours": lambda: pairing_grid(shown, training, nearest_neighbours(shown, training), 10),
        "manifold": lambda: image_grid(latent_manifold(model, 18), 18, padding=0),
        "reconstructions": lambda: _reconstructions(model, training[:20].to(model.device)),
    }
    names = PICTURES[model.name]
    paths = {name: _written(grids[name](), folder / f"{model.name}-{name}.png", model, name) for name in names}
    paths["early"] = min(result.model_path.parent.glob("samples/step-*.png"))
    return paths


def _reconstructions(model: VariationalAutoencoder, images: Tensor) -> Tensor:
    return image_grid(torch.cat([images, model.reconstruct(images)], dim=2), 10)


def _written(grid: Tensor, path: Path, model: ImageModel, name: str) -> Path:
    seed = None if name in ("manifold", "reconstructions") else SEED
    return write_png(path, grid, provenance_of(model, seed, picture=name, command="aigc-fast demo"), scale=SCALE)
