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
    """The base of all data sets: items in memory, with or without classes.

    Attributes:
        unit: the name of the items, in the plural.
        labels: int64 (N,), or None without classes.
        class_names: the names of the classes, in the labels' order; empty without classes.
        name: where the items come from, for logs and provenance.
        notes: what was left out, changed or corrected when they were read, in lines to show.
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
        """The labels of some items.

        Args:
            indices: int64 (n,), or a slice; all by default.

        Returns:
            int64 (n,), or None without classes.
        """
        return None if self.labels is None else self.labels[indices]

    @property
    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """The shape of an item, as arguments of the constructors of models for such items."""

    @property
    def suited(self) -> dict[str, Any]:
        """Further arguments of these constructors that suit the items; defaults, which others may replace."""
        return {}

    @property
    def summary(self) -> str:
        """The number of items, their shape and their classes, in a line to show."""
        names = listed([one_line(name) for name in self.class_names])
        classes = f"{counted(len(self.class_names), 'classes')}: {names}"
        form = f"{counted(len(self), self.unit)} of {self.name}, {self._form()}"
        return f"{form}, {classes if self.class_names else 'without classes'}"

    @abstractmethod
    def _form(self) -> str:
        """The shape of an item in words."""

    def record(self) -> dict[str, Any]:
        """What is recorded with a model that was trained on these items, a JSON-able dictionary."""
        return {"name": self.name, self.unit: len(self), "checksum": self.checksum()}

    def checksum(self) -> int:
        """CRC-32 of the items, by which a resumed run knows whether it trains on the same ones."""
        return zlib.crc32(self._content().contiguous().numpy())

    @abstractmethod
    def _content(self) -> Tensor: ...


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images of one size, stored as bytes; see `Dataset`.

    Attributes:
        images: uint8 (N, channels, height, width).
        labels: int64 (N,), or None without classes.
        class_names: the names of the classes, in the labels' order; empty without classes.
        name: where the images come from, for logs and provenance.
        notes: what was left out, changed or corrected when they were read, in lines to show.
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
        """Some images, as models take them.

        Args:
            indices: int64 (n,), or a slice; all by default.

        Returns:
            float32 (n, channels, height, width) in [-1, 1].
        """
        return self.images[indices].float() / 127.5 - 1


def shift(images: Tensor, distance: int, generator: torch.Generator | None = None) -> Tensor:
    """Shifts each image at random by up to `distance` pixels along each axis; border pixels are repeated.

    Args:
        images: (N, C, H, W).
        distance: the greatest shift in pixels, 0 or more.
        generator: makes the draw reproducible; None uses PyTorch's default generator.

    Returns:
        The shifted images, of the same shape and dtype.
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
