"""Images: PNG files, grids of them, and how near they come to the training images."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from aigc_fast import data
from aigc_fast.data import ImageDataset, shift
from aigc_fast.data.pictures import BACKGROUND, MAX_PIXELS, picture_suffixes
from aigc_fast.data.readers import DEFAULT_SIZE
from aigc_fast.data.videos import DEFAULT_SIZE as VIDEO_SIZE
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, class_columns, draw, image_grid, read_provenance, write_png
from aigc_fast.media.kinds import GRID, INTERPOLATION, MANIFOLD, SHARD_SIZE, SHARDS, SINGLE
from aigc_fast.media.medium import ItemFeed, Medium
from aigc_fast.metrics import ImageReport, evaluate_images, nearest_neighbours, pairing_grid
from aigc_fast.models import ImageModel, Model
from aigc_fast.settings import Setting

if TYPE_CHECKING:
    from aigc_fast.training import TrainingConfig

PAIRS = 30

# Frames of video are read likewise.
READING = (
    Setting(
        "background",
        str,
        f"What transparent images are put on, by name or as #ff8800; {BACKGROUND} unless given.",
        metavar="COLOUR",
    ),
    Setting("max_pixels", int, f"The most that an image file may have; {MAX_PIXELS} unless given.", least=1),
)
SIZE = Setting(
    "size",
    int,
    "Scale the images to this many pixels a side; a multiple of 4 for dcgan, conv-vae and video.",
    default=f"{DEFAULT_SIZE}, or {VIDEO_SIZE} for video; an array's own for an npz and for IDX files",
    least=1,
    shapes_model=True,
)
CHANNELS = Setting(
    "channels",
    int,
    "1 for grey images, 3 for colour.",
    default="what the images are",
    least=1,
    most=3,
    shapes_model=True,
)


class ImageFeed(ItemFeed):
    """Images, each moved at random.

    Args:
        model: to train.
        dataset: images of the model's shape.
        config: whose `shift` is the distance.

    Raises:
        UserError: when the distance is beyond the images' sides.
    """

    def __init__(self, model: ImageModel, dataset: ImageDataset, config: TrainingConfig) -> None:
        if config.shift > max(model.image_shape[1:]):
            raise UserError(f"shift={config.shift}: expected at most {max(model.image_shape[1:])}, the images' side")
        super().__init__(model, dataset, config)

    def batch(self, indices: Tensor) -> Tensor:
        """Images (n, channels, height, width) in [-1, 1]."""
        return shift(self.dataset.batch(indices), self.config.shift).to(self.model.device, self.model.dtype)

    def write_samples(self, model: ImageModel, seed: int, path: Path, provenance: Provenance) -> Tensor:
        """A grid as PNG, a class in each column. See `Feed.write_samples`."""
        columns = class_columns(model, 8)
        grid = image_grid(draw(model, 8 * columns, seed=seed), columns)
        write_png(path.with_suffix(".png"), grid, provenance)
        return grid


class Images(Medium):
    """See `Medium`; items are images (N, C, H, W) in [-1, 1]."""

    name = "images"
    unit = ImageDataset.unit
    model = ImageModel
    suffixes = (".png",)
    files = (
        "Training images: an mnist.npz, a folder with MNIST's IDX files, or a folder of images whose subfolders are "
        "classes"
    )
    embedded = "the digits"
    reading_settings = READING
    data_settings = (SIZE, CHANNELS, *READING)
    training_settings = (Setting("shift", int, "Move each image at random by up to so many pixels.", least=0),)
    kinds = MappingProxyType({GRID: 64, SINGLE: 8, INTERPOLATION: 8, MANIFOLD: 15, SHARDS: SHARD_SIZE})
    pictured = True
    evaluated = 1000
    rows = (
        (
            "Fréchet distance",
            "frechet",
            "{:.1f}",
            "0; {frechet_of_training:.1f} between two halves of the training images",
        ),
        ("Precision", "precision", "{:.2f}", "1: every image lies among the training images"),
        ("Recall", "recall", "{:.2f}", "1: every training image lies among these"),
        ("Density", "density", "{:.2f}", "about 1"),
        ("Coverage", "coverage", "{:.2f}", "1: every training image has one of these nearby"),
        (
            "Nearest training image",
            "nearest",
            "{:.2f}",
            "{nearest_of_training:.2f} from one training image to the next; near 0 would be copying",
        ),
        (
            "Effective classes",
            "effective_classes",
            "{:.1f}",
            "{training_effective_classes:.1f} in the training images; 1 is a collapsed model",
        ),
    )

    def load(self, path: Path | None, **settings: Any) -> ImageDataset:
        """See `Medium.load`."""
        return data.load(path, **settings)

    def load_for(self, model: ImageModel, path: Path | None, **reading: Any) -> ImageDataset:
        """See `Medium.load_for`."""
        channels, height, width = model.image_shape
        found = data.load(path, size=height if height == width else None, channels=channels, **reading)
        if found.image_shape != model.image_shape:
            raise UserError(f"{found.name}: images are {found.image_shape}, the model's are {model.image_shape}")
        return found

    def load_like(self, training: ImageDataset, folder: Path, **reading: Any) -> ImageDataset:
        """See `Medium.load_like`."""
        channels, height, _ = training.image_shape
        return data.load(folder, size=height, channels=channels, **reading)

    def is_item(self, path: Path) -> bool:
        """See `Medium.is_item`."""
        return path.suffix.lower() in picture_suffixes()

    def items(self, dataset: ImageDataset) -> Tensor:
        """See `Medium.items`."""
        return dataset.batch()

    def feed(self, model: ImageModel, dataset: ImageDataset, config: TrainingConfig) -> ImageFeed:
        """See `Medium.feed`."""
        return ImageFeed(model, dataset, config)

    def joined(self, model: ImageModel, items: Tensor, columns: int | None) -> Tensor:
        """See `Medium.joined`: a grid."""
        return image_grid(items, columns)

    def write(self, path: Path, piece: Tensor, model: ImageModel, provenance: Provenance, scale: int) -> None:
        """See `Medium.write`."""
        write_png(path, piece, provenance, scale=scale)

    def read_provenance(self, path: Path) -> Provenance:
        """See `Medium.read_provenance`."""
        return read_provenance(path)

    def measure(self, items: Tensor, training: ImageDataset, model: Model | None) -> ImageReport:
        """See `Medium.measure`."""
        return evaluate_images(items.cpu(), training.batch())

    def remarks(self, report: ImageReport) -> list[str]:
        """See `Medium.remarks`."""
        shares = "  ".join(f"{index}: {share:.0%}" for index, share in enumerate(report.class_histogram))
        return [f"Taken for the digits:  {shares}"]

    def beside_nearest(self, items: Tensor, training: ImageDataset) -> Tensor:
        """See `Medium.beside_nearest`."""
        shown = items[:PAIRS].cpu()
        return pairing_grid(shown, training.batch(), nearest_neighbours(shown, training.batch()))


IMAGES = Images()
