"""Options and checks that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aigc_fast.errors import UserError
from aigc_fast.files import make_folder

MAX_SEED = 2**63 - 1


def checked_seed(seed: int) -> int:
    """A seed that PyTorch's generators take."""
    if seed > MAX_SEED:
        raise UserError(f"--seed: expected at most {MAX_SEED}, got {seed}")
    return seed


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL_FILE", help="A model that train wrote: model.safetensors.")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Training images: an mnist.npz, a folder with MNIST's IDX files, or a folder of images whose subfolders "
        "are classes.",
        show_default="the digits that come with the package",
    ),
]
Seed = Annotated[int, typer.Option(min=0, callback=checked_seed, help="The same seed gives the same images.")]
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
