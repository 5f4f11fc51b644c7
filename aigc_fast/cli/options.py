"""Options and checks that several commands share, and how they find models and data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aigc_fast import data as datasets
from aigc_fast.data import Dataset
from aigc_fast.data.pictures import BACKGROUND, MAX_PIXELS
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.models import MODELS, ImageModel, LatentModel, SoundModel
from aigc_fast.models.storage import read_metadata
from aigc_fast.training import MODEL_FILE

MAX_SEED = 2**63 - 1
RUNS = Path("runs")
MEDIA: dict[str, type[LatentModel]] = {"images": ImageModel, "audio": SoundModel}
"""What a model makes, by the word that the command line uses."""


def checked_seed(seed: int) -> int:
    """A seed that PyTorch's generators take."""
    if seed > MAX_SEED:
        raise UserError(f"--seed: expected at most {MAX_SEED}, got {seed}")
    return seed


Subject = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help=f"A model file that train wrote, its folder, or a medium, {' or '.join(MEDIA)}: the newest model of it "
        f"under {RUNS}.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Training images: an mnist.npz, a folder with MNIST's IDX files, or a folder of images whose subfolders "
        "are classes; for audio a folder of WAV files, likewise.",
        show_default="the digits, or the vowels and strings, that come with the package",
    ),
]
Background = Annotated[
    str | None,
    typer.Option(
        "--background",
        metavar="COLOUR",
        help=f"What transparent images are put on, by name or as #ff8800; {BACKGROUND} unless given.",
        show_default=False,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help=f"The most that an image file may have; {MAX_PIXELS} unless given.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option(min=0, callback=checked_seed, help="The same seed gives the same.")]
Class = Annotated[
    int | None,
    typer.Option("--class", min=0, help="Draw this class alone (conditional models).", show_default="all in turn"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def new_file(path: Path, overwrite: bool) -> Path:
    """Checks, before any work is done, that a file can be written.

    Raises:
        UserError: when it is there already and may not be replaced, or its folder can't be written to.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already: choose another --out, or give --overwrite")
    make_folder(path.parent)
    return path


def model_file(subject: Path) -> Path:
    """The model file that a `Subject` means.

    Raises:
        UserError: on a medium that no run has a model of, or a folder without a model.
    """
    if has_model(subject):
        return subject / MODEL_FILE
    if str(subject) in MEDIA and not subject.is_file():
        return _newest(str(subject))
    if subject.is_dir():
        raise UserError(f"{subject}: the folder holds no {MODEL_FILE}")
    return subject


def has_model(folder: Path) -> bool:
    """Whether a folder is a run's, with its model."""
    return (folder / MODEL_FILE).is_file()


def _newest(medium: str) -> Path:
    makers = [name for name, model in MODELS.items() if issubclass(model, MEDIA[medium])]
    found = [path for path in RUNS.glob(f"*/{MODEL_FILE}") if _maker(path) in makers]
    if not found:
        raise UserError(
            f"{medium}: no run under {RUNS} has a model of it: aigc-fast train {makers[-1]}, or name a model file"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def _maker(path: Path) -> str | None:
    try:
        return read_metadata(path).get("model")
    except UserError:
        return None


def reading_options(background: str | None, max_pixels: int | None) -> dict[str, Any]:
    """The options of reading images that were given."""
    return {
        name: value for name, value in (("background", background), ("max_pixels", max_pixels)) if value is not None
    }


def tell(dataset: Dataset, err: bool = False) -> None:
    """Prints what was done to the items as they were read."""
    for note in dataset.notes:
        typer.echo(f"Note: {note}", err=err)


def training_data(model: LatentModel, path: Path | None, **reading: Any) -> Dataset:
    """Data of the shape that a model makes; `reading` as for `data.load`.

    Raises:
        UserError: when there is none.
    """
    if isinstance(model, SoundModel):
        return datasets.load_sounds(path, seconds=model.length / model.sample_rate, sample_rate=model.sample_rate)
    channels, height, width = model.image_shape
    found = datasets.load(path, size=height if height == width else None, channels=channels, **reading)
    if found.image_shape != model.image_shape:
        raise UserError(f"{found.name}: images are {found.image_shape}, the model's are {model.image_shape}")
    return found
