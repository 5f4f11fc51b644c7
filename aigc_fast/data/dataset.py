"""What training takes: images or sounds in memory, and their batches."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aigc_fast.data.notes import one_line
from aigc_fast.runtime.rows import rows_of
from aigc_fast.wording import counted, listed


class Dataset(ABC):
    """Items in memory, with or without classes.

    Attributes:
        unit: what the items are called, in the plural.
        labels: int64 (N,), or None without classes.
        class_names: what the classes are called, in the labels' order; empty without classes.
        name: where the items come from, for logs and provenance.
        notes: what was left out, changed or put right when they were read, in lines for people.
    """

    unit: ClassVar[str]
    labels: Tensor | None
    class_names: tuple[str, ...]
    name: str
    notes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes, None without classes."""
        return len(self.class_names) or None

    def batch_labels(self, indices: Tensor | slice = slice(None)) -> Tensor | None:
        """The labels at `indices`, int64 (n,), or None without classes."""
        return None if self.labels is None else self.labels[indices]

    @property
    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """One item's, as the constructors of models for such items take it."""

    @property
    def suited(self) -> dict[str, Any]:
        """What else of these constructors' arguments suits the items, unless others are asked for."""
        return {}

    @property
    def summary(self) -> str:
        """How many items of what shape and which classes, in a line for people."""
        names = listed([one_line(name) for name in self.class_names])
        classes = f"{counted(len(self.class_names), 'classes')}: {names}"
        form = f"{counted(len(self), self.unit)} of {self.name}, {self._form()}"
        return f"{form}, {classes if self.class_names else 'without classes'}"

    @abstractmethod
    def _form(self) -> str:
        """One item's shape in words."""

    def record(self) -> dict[str, Any]:
        """What is kept with a model that was trained on it, JSON-able."""
        return {"name": self.name, self.unit: len(self), "checksum": self.checksum()}

    def checksum(self) -> int:
        """CRC-32 of the items: tells whether two runs train on the same."""
        return zlib.crc32(self._content().contiguous().numpy())

    @abstractmethod
    def _content(self) -> Tensor: ...


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images of one size, held as bytes.

    Attributes:
        images: uint8 (N, channels, height, width).
        labels: int64 (N,), or None without classes.
        class_names: what the classes are called, in the labels' order; empty without classes.
        name: where the images come from, for logs and provenance.
        notes: what was left out, changed or put right when they were read, in lines for people.
    """

    unit = "images"
    images: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    name: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> dict[str, Any]:
        """`{"image_shape": (channels, height, width)}`."""
        return {"image_shape": self.image_shape}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return tuple(self.images.shape[1:])

    def _form(self) -> str:
        channels, height, width = self.image_shape
        return f"{width} × {height} pixels in {'grey' if channels == 1 else 'colour'}"

    def _content(self) -> Tensor:
        return self.images

    def batch(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """The images at `indices`, float32 (n, channels, height, width) in [-1, 1]."""
        return self.images[indices].float() / 127.5 - 1


def shift(images: Tensor, distance: int, generator: torch.Generator | None = None) -> Tensor:
    """Moves each image by up to `distance` pixels both ways; the border repeats.

    Args:
        images: (N, C, H, W).
        distance: the most pixels, 0 or more.
        generator: makes the draw repeatable.

    Returns:
        The moved images, of the same shape.
    """
    if distance == 0:
        return images
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (distance,) * 4, mode="replicate")
    rows = rows_of(n)
    top, left = torch.randint(0, 2 * distance + 1, (2, rows.total, 1), generator=generator)[:, rows.places]
    rows = (top + torch.arange(height))[:, None, :, None]
    columns = (left + torch.arange(width))[:, None, None, :]
    samples = torch.arange(n)[:, None, None, None]
    channels = torch.arange(images.shape[1])[None, :, None, None]
    return padded[samples, channels, rows, columns]
