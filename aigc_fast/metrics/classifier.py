"""The small classifier whose features image metrics are measured on."""

from __future__ import annotations

import functools
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from aigc_fast.checks import check_finite, check_floating, integer
from aigc_fast.data import shift
from aigc_fast.runtime.arguments import check_types

SIZE = 28
CLASSES = 10
FEATURES = 64
WEIGHTS = "digits_classifier.safetensors"
MOST_OF_PIXELS = 1e30
"""The size up to which features of pixels are finite."""

_BATCH = 512


class ImageClassifier(nn.Module):
    """Three convolutions and two linear layers on 28×28 grey images; other images are averaged to grey and resized."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, FEATURES),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """The features of images: the last layer before the classes, before its ReLU.

        Args:
            images: (N, C, H, W) in [-1, 1], floating-point.

        Returns:
            (N, 64).
        """
        check_floating(images=images)
        if images.dim() != 4:
            raise ValueError(f"images: expected (N, C, H, W), got shape {tuple(images.shape)}")
        grey = images.float().mean(dim=1, keepdim=True)
        if grey.shape[2:] != (SIZE, SIZE):
            grey = nn.functional.interpolate(grey, (SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)
        return self.trunk(grey)

    def classify(self, features: Tensor) -> Tensor:
        """The logits (N, 10) of features (N, 64)."""
        return self.head(features.relu())

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] to (N, 10) logits."""
        return self.classify(self.features(images))

    def features_of(self, images: Tensor) -> Tensor:
        """`features` of any number of images, batch by batch, without gradients; arguments and results as there."""
        with torch.no_grad():
            return torch.cat([self.features(part) for part in images.split(_BATCH)])


def train_classifier(images: Tensor, labels: Tensor, *, epochs: int = 30, seed: int = 0) -> ImageClassifier:
    """Trains the classifier from scratch: some seconds on the embedded digits.

    The weights that ship with the package are `train_classifier(digits.batch(), digits.labels).state_dict()` for
    `digits = aigc_fast.data.digits()`.

    Args:
        images: (N, C, H, W) in [-1, 1].
        labels: (N,) int64 in 0..9.
        epochs: passes over the images.
        seed: fixes weights, order and augmentation.

    Returns:
        The classifier in eval mode.

    Raises:
        TypeError: if an argument is not a Tensor.
        ValueError: for other shapes, dtypes or labels, no images, or pixels that are not finite.
    """
    _check_training(images, labels)
    epochs = integer("epochs", epochs, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageClassifier()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * (len(images) // 64 + 1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.tensor_split(torch.randperm(len(images), generator=generator), len(images) // 64 + 1):
            optimiser.zero_grad()
            moved = shift(images[batch], 2, generator)
            logits = model(moved + 0.05 * torch.randn(moved.shape, generator=generator))
            nn.functional.cross_entropy(logits, labels[batch], label_smoothing=0.05).backward()
            optimiser.step()
            schedule.step()
    return model.eval().requires_grad_(False)


def _check_training(images: Tensor, labels: Tensor) -> None:
    check_floating(images=images)
    check_types(labels=labels)
    if images.dim() != 4 or not images.numel():
        raise ValueError(f"images: expected (N, C, H, W) and not empty, got shape {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels: expected ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if not bool(((labels >= 0) & (labels < CLASSES)).all()):
        raise ValueError(f"labels: expected 0 to {CLASSES - 1}, got {int(labels.min())} to {int(labels.max())}")
    check_finite(images=images)


@functools.cache
def load_classifier() -> ImageClassifier:
    """The classifier that ships with the package, trained on the embedded digits; in eval mode, without gradients."""
    model = ImageClassifier()
    with as_file(files("aigc_fast.metrics") / WEIGHTS) as path:
        model.load_state_dict(load_file(Path(path)))
    return model.eval().requires_grad_(False)
