"""`aigc-fast generate`: images or sounds from a model file, each with its provenance."""

from __future__ import annotations

import shlex
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from aigc_fast.cli.app import console
from aigc_fast.cli.options import Class, Overwrite, Seed, Subject, model_file, new_file
from aigc_fast.data.audio import WAV_SUFFIXES
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.generation import (
    draw,
    image_grid,
    interpolate,
    latent_manifold,
    provenance_of,
    sound_sequence,
    write_png,
    write_sound,
)
from aigc_fast.models import LatentModel, SoundModel, load


class What(str, Enum):
    """What to make."""

    grid = "grid"
    sequence = "sequence"
    single = "single"
    interpolation = "interpolation"
    manifold = "manifold"


_OF_SOUNDS = {What.sequence: 6, What.single: 6, What.interpolation: 1}
_OF_IMAGES = {What.grid: 64, What.single: 8, What.interpolation: 8, What.manifold: 15}
"""How many by default, for what can be made of each medium; the first is made unless asked otherwise."""

_SUFFIXES = {".png": (".png",), ".wav": WAV_SUFFIXES}

Kind = Annotated[
    What | None,
    typer.Option(
        help="grid: one PNG of many images. sequence: one WAV of many sounds. single: one file each. interpolation: "
        "walks between random latents. manifold: the map of a 2-d latent (conv-vae).",
        show_default="grid, or sequence for audio",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="PNG or WAV file to write; a folder for single.", show_default="out/MODEL-WHAT.png or .wav"),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=100_000,
        help="Images in the grid, sounds in the sequence, files, walks, or images per side of the manifold.",
        show_default="64; 6; 8, or 6 for audio; 8, or 1 for audio; 15",
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(min=1, help="Images per row of the grid, or steps of each walk.", show_default="square; 10"),
]
Scale = Annotated[int, typer.Option(min=1, max=64, help="Draw each pixel as a square of this side.")]


def generate(
    model: Subject,
    what: Kind = None,
    out: Out = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    columns: Columns = None,
    scale: Scale = 1,
    overwrite: Overwrite = False,
) -> None:
    """Generate images or sounds with a trained model.

    A sound is a WAV file, and a PNG of its spectrogram beside it. Every file records the model, its settings, the seed
    and the command in its metadata: aigc-fast provenance FILE shows them.

    Example:  aigc-fast generate runs/dcgan/model.safetensors --what grid --seed 7
    """
    path = model_file(model)
    generator = load(path)
    sounds = isinstance(generator, SoundModel)
    kind, number = _checked_kind(generator, what, count)
    settings = {
        "command": _command(path, kind, number, seed, label, columns, scale),
        "model_checksum": getattr(generator, "metadata", {}).get("checksum"),
    }
    suffix = ".wav" if sounds else ".png"
    target = out or Path("out") / (f"{generator.name}-{kind.value}" + ("" if kind is What.single else suffix))
    targets = _targets(target, kind, number, suffix, overwrite)
    items = _checked_draw(generator, kind, number, seed, label, columns)
    if kind is What.single:
        pieces = [(piece, {"index": index}) for index, piece in enumerate(items)]
    elif sounds:
        pieces = [(sound_sequence(items, generator.sample_rate), {})]
    else:
        pieces = [(image_grid(items, _columns(kind, number, columns)), {})]
    for file, (piece, place) in zip(targets, pieces, strict=True):
        record = provenance_of(generator, None if kind is What.manifold else seed, **place, **settings)
        if sounds:
            write_sound(file, piece, generator.sample_rate, record)
        else:
            write_png(file, piece, record, scale=scale)
    made = "sounds" if sounds else "images"
    told = f"{len(targets)} {made} to {target}" if kind is What.single else str(target)
    console.print(f"Wrote {told}", soft_wrap=True)


def _checked_kind(model: LatentModel, what: What | None, count: int | None) -> tuple[What, int]:
    possible = _OF_SOUNDS if isinstance(model, SoundModel) else _OF_IMAGES
    kind = what or next(iter(possible))
    if kind not in possible:
        raise UserError(f"--what {kind.value}: {model.name} makes {', '.join(other.value for other in possible)}")
    return kind, count or possible[kind]


def _targets(target: Path, kind: What, count: int, suffix: str, overwrite: bool) -> list[Path]:
    """The files to write, checked before any work is done; a sound's spectrogram is written beside it."""
    if kind is What.single:
        width = len(str(count - 1))
        files = [make_folder(target) / f"{index:0{width}d}{suffix}" for index in range(count)]
    else:
        files = [target]
    if files[0].suffix.lower() not in _SUFFIXES[suffix] and not target.is_dir():
        raise UserError(f"{target}: expected the name of a {suffix[1:].upper()} file")
    for file in files:
        new_file(file, overwrite)
        if suffix != ".png":
            new_file(file.with_suffix(".png"), overwrite)
    return files


def _columns(kind: What, count: int, columns: int | None) -> int | None:
    return {What.interpolation: columns or 10, What.manifold: count}.get(kind, columns)


def _checked_draw(
    model: LatentModel, kind: What, count: int, seed: int, label: int | None, columns: int | None
) -> Tensor:
    try:
        if kind is What.interpolation:
            # One class for a whole walk: walks through all classes in turn show nothing.
            label = 0 if label is None and model.num_classes else label
            return interpolate(model, columns or 10, rows=count, seed=seed, labels=label)
        if kind is What.manifold:
            label = 0 if label is None and model.num_classes else label
            return latent_manifold(model, count, labels=label)
        return draw(model, count, seed=seed, labels=label)
    except ValueError as error:
        raise UserError(str(error)) from None


def _command(path: Path, kind: What, count: int, seed: int, label: int | None, columns: int | None, scale: int) -> str:
    """The command that makes the same again; the model file by its name alone."""
    options: dict[str, Any] = {"what": kind.value, "count": count, "seed": seed, "class": label}
    options |= {"columns": columns, "scale": scale if scale != 1 else None}
    words = [f"--{name} {value}" for name, value in options.items() if value is not None]
    return " ".join(["aigc-fast generate", shlex.quote(path.name), *words])
