"""`aigc-fast generate`: images from a model file, each with its provenance."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from aigc_fast.cli.app import console
from aigc_fast.cli.options import Class, ModelFile, Overwrite, Seed, new_file
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.generation import draw, image_grid, interpolate, latent_manifold, provenance_of, write_png
from aigc_fast.models import ImageModel, load


class What(str, Enum):
    """What to make."""

    grid = "grid"
    single = "single"
    interpolation = "interpolation"
    manifold = "manifold"


_DEFAULT_COUNTS = {What.grid: 64, What.single: 8, What.interpolation: 8, What.manifold: 15}

Kind = Annotated[
    What,
    typer.Option(
        help="grid: one PNG of many images. single: one PNG each. interpolation: walks between random latents. "
        "manifold: the map of a 2-d latent (conv-vae)."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="PNG file to write; a folder for single.", show_default="out/MODEL-WHAT.png"),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        help="Images in the grid or single, walks, or images per side of the manifold.",
        show_default="64, 8, 8, 15",
    ),
]
Columns = Annotated[
    int | None, typer.Option(min=1, help="Images per row of the grid, or of each walk.", show_default="square; 10")
]
Scale = Annotated[int, typer.Option(min=1, max=64, help="Draw each pixel as a square of this side.")]


def generate(
    model_file: ModelFile,
    what: Kind = What.grid,
    out: Out = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    columns: Columns = None,
    scale: Scale = 1,
    overwrite: Overwrite = False,
) -> None:
    """Generate images with a trained model.

    Every PNG records the model, its settings, the seed and the command in its metadata: aigc-fast provenance FILE
    shows them.

    Example:  aigc-fast generate runs/dcgan/model.safetensors --what grid --seed 7
    """
    model = load(model_file)
    number = count or _DEFAULT_COUNTS[what]
    settings = {
        "command": _command(model_file, what, number, seed, label, columns, scale),
        "model_checksum": getattr(model, "metadata", {}).get("checksum"),
    }
    if what is What.single:
        images = _checked_draw(model, what, number, seed, label, columns)
        written = _write_single(
            images, out or Path("out") / f"{model.name}-single", model, seed, settings, scale, overwrite
        )
    else:
        target = new_file(out or Path("out") / f"{model.name}-{what.value}.png", overwrite)
        images = _checked_draw(model, what, number, seed, label, columns)
        grid = image_grid(images, _columns(what, number, columns))
        written = write_png(target, grid, provenance_of(model, _seed_of(what, seed), **settings), scale=scale)
    console.print(f"Wrote {written}", soft_wrap=True)


def _seed_of(what: What, seed: int) -> int | None:
    return None if what is What.manifold else seed


def _columns(what: What, count: int, columns: int | None) -> int | None:
    return {What.interpolation: columns or 10, What.manifold: count}.get(what, columns)


def _checked_draw(
    model: ImageModel, what: What, count: int, seed: int, label: int | None, columns: int | None
) -> Tensor:
    try:
        if what is What.interpolation:
            # One class for a whole walk: walks through all classes in turn show nothing.
            label = 0 if label is None and model.num_classes else label
            return interpolate(model, columns or 10, rows=count, seed=seed, labels=label)
        if what is What.manifold:
            label = 0 if label is None and model.num_classes else label
            return latent_manifold(model, count, labels=label)
        return draw(model, count, seed=seed, labels=label)
    except ValueError as error:
        raise UserError(str(error)) from None


def _write_single(
    images: Tensor, folder: Path, model: ImageModel, seed: int, settings: dict[str, Any], scale: int, overwrite: bool
) -> str:
    width = len(str(len(images) - 1))
    make_folder(folder)
    paths = [new_file(folder / f"{index:0{width}d}.png", overwrite) for index in range(len(images))]
    for index, (path, image) in enumerate(zip(paths, images, strict=True)):
        write_png(path, image, provenance_of(model, seed, index=index, **settings), scale=scale)
    return f"{len(paths)} images to {folder}"


def _command(
    model_file: Path, what: What, count: int, seed: int, label: int | None, columns: int | None, scale: int
) -> str:
    """The command that makes the same again; the model file by its name alone."""
    options: dict[str, Any] = {"what": what.value, "count": count, "seed": seed, "class": label}
    options |= {"columns": columns, "scale": scale if scale != 1 else None}
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["aigc-fast generate", shlex.quote(model_file.name), *words])
