"""`aigc-fast generate`: images, sounds, text or video from a model file, each with its provenance."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from aigc_fast.cli.app import console
from aigc_fast.cli.options import (
    MEDIA,
    Class,
    Device,
    Overwrite,
    Seed,
    Subject,
    all_settings,
    as_parameter,
    chosen,
    chosen_device,
    class_names,
    class_of,
    load_model,
    model_file,
    new_file,
    offering,
    with_default,
)
from aigc_fast.errors import UserError
from aigc_fast.files import make_folder
from aigc_fast.generation import class_columns, provenance_of
from aigc_fast.media import Kind, Medium, Wanted, medium_of
from aigc_fast.media.kinds import GRID, INTERPOLATION, MANIFOLD, SHARD_SIZE, SHARDS, SINGLE
from aigc_fast.media.shards import Order, Shards
from aigc_fast.models import Model
from aigc_fast.models.text.tokenizers import REPLACEMENT
from aigc_fast.runtime.ranks import is_launched, launched, own_device
from aigc_fast.settings import Setting
from aigc_fast.training import MODEL_FILE
from aigc_fast.training.log import ProgressBar
from aigc_fast.wording import counted, listed, together


def _kinds() -> list[Kind]:
    """What can be made of any medium: first what each is made into unless asked otherwise."""
    of_media = [list(medium.kinds) for medium in MEDIA.values()]
    return list(dict.fromkeys([kinds[0] for kinds in of_media] + [kind for kinds in of_media for kind in kinds]))


_KINDS = {kind.name: kind for kind in _kinds()}
What = Enum("What", {name: name for name in _KINDS}, type=str)
_STEPS = 10
_LONGEST = 40
_MOST = 100_000
_COMMANDS = {code: REPLACEMENT for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def _made_by_default() -> str:
    first, *others = MEDIA.values()
    return ", or ".join([_first(first).name, *(f"{_first(medium).name} for {medium.name}" for medium in others)])


def _first(medium: Medium) -> Kind:
    return next(iter(medium.kinds))


def _alternatives(words: Iterable[str]) -> str:
    return " or ".join(dict.fromkeys(words))


WhatKind = Annotated[
    What | None,
    typer.Option(
        help=with_default(" ".join(f"{kind.name}: {kind.help}." for kind in _KINDS.values()), _made_by_default()),
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help=with_default(
            f"{_alternatives(medium.formats for medium in MEDIA.values())} file to write; a folder for single.",
            f"out/RUN-WHAT{_alternatives(medium.suffixes[0] for medium in MEDIA.values())}, with the options given "
            "that change it",
        ),
        show_default=False,
    ),
]
Count = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=with_default(
            "Images in the grid, sounds in the sequence, texts of the passage, clips in the film, answers to each "
            "source, files, walks, or images per side of the manifold.",
            "8 of each class, or 64; one of each class, or 6, for a sequence or a film; 1 text or answer; 8 files, or "
            "6 for audio and 4 for text and video; 8 walks, or 1 for audio; 15",
        ),
        show_default=False,
    ),
]
ToClass = Annotated[
    str | None,
    typer.Option(
        "--to-class",
        metavar="NAME",
        help=with_default("The class in which the walks of an interpolation end.", "--class, or the next"),
        show_default=False,
    ),
]
Columns = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=with_default(
            "Images or clips per row, or steps of each walk.", "one for each class up to 16, or square; 10"
        ),
        show_default=False,
    ),
]
ShardSize = Annotated[int, typer.Option(min=1, help="Items of a shard.")]
Scale = Annotated[int, typer.Option(min=1, max=64, help="Draw each pixel as a square of this side.")]
_DRAWING = all_settings("drawing_settings")


def _owners(setting: Setting) -> str:
    return together([medium.name for medium in MEDIA.values() if setting in medium.drawing_settings])


@offering(
    device=[
        as_parameter(setting, setting.default, f"{_owners(setting).capitalize()} only")
        for setting in sorted(_DRAWING, key=_owners)
    ]
)
def generate(
    model: Subject,
    what: WhatKind = None,
    out: Out = None,
    count: Count = None,
    seed: Seed = 0,
    label: Class = None,
    to_label: ToClass = None,
    columns: Columns = None,
    scale: Scale = 1,
    device: Device = None,
    overwrite: Overwrite = False,
    shard_size: ShardSize = SHARD_SIZE,
    **given: Any,
) -> None:
    """Generate images, sounds, text or video with a trained model, or let it answer.

    A sound is a WAV file, and a PNG of its spectrogram beside it; a video an APNG, a GIF or an MP4, as the name of
    --out ends, and a PNG of its frames beside it. Text is shown as it is made. Every file records the model, its
    settings, the seed and the command in its metadata, or, where it has none, in a .json beside it: aigc-fast
    provenance FILE shows them. Under torchrun its processes share the shards; shards that are there stay.

    Example:  aigc-fast generate runs/dcgan/model.safetensors --what grid --seed 7
    """
    place = own_device(chosen_device(device))
    path = model_file(model)
    generator = load_model(path, place)
    medium = medium_of(generator)
    options = {"count": count, "class": label, "to-class": to_label, "columns": columns}
    options |= {"seed": seed or None, "scale": scale if scale != 1 else None}
    drawing = _drawing(generator, given, options)
    wanted = _wanted(generator, what, options, drawing)
    settings = {
        "command": _command(path, wanted, seed),
        "model_checksum": getattr(generator, "metadata", {}).get("checksum"),
        "device": place.type,
        **drawing,
    }
    if wanted.kind is SHARDS:
        order = _order(path, wanted, seed, scale, shard_size, settings)
        _write_shards(Shards(out or Path("out") / _name(path, wanted), generator, medium, order))
        return
    if is_launched():
        raise UserError(f"--what {wanted.kind.name}: one process makes it; several share --what {SHARDS.name}")
    target = out or Path("out") / (_name(path, wanted) + ("" if wanted.kind is SINGLE else medium.suffixes[0]))
    targets = _targets(target, wanted, medium, overwrite)
    items = _checked_draw(generator, wanted, seed)
    if medium.streamed:
        typer.echo()
    if wanted.kind is SINGLE:
        pieces = [(piece, {"index": index}) for index, piece in enumerate(items)]
    else:
        pieces = [(medium.joined(generator, items, wanted.columns), {})]
    for file, (piece, index) in zip(targets, pieces, strict=True):
        record = provenance_of(generator, None if wanted.kind is MANIFOLD else seed, **index, **settings)
        medium.write(file, piece, generator, record, scale)
    typer.echo(
        f"Wrote {_told(targets, target, wanted, medium)}{_classes_told(generator, wanted)}{medium.pace(generator)}",
        err=medium.streamed,
    )


def _told(files: Sequence[Path], target: Path, wanted: Wanted, medium: Medium) -> str:
    if wanted.kind is SINGLE:
        return f"{counted(len(files), medium.unit)} to {target}"
    pictures = [] if medium.streamed else [target.with_suffix(suffix).name for suffix in medium.beside]
    return together([str(target), *pictures])


def _order(path: Path, wanted: Wanted, seed: int, scale: int, size: int, settings: Mapping[str, Any]) -> Order:
    record = {name: settings[name] for name in ("model_checksum", "device")}
    options = {name: value for name, value in _texts(wanted.options) if name not in ("count", "class", "seed")}
    words = [f"--{name} {shlex.quote(value)}" for name, value in {"what": SINGLE.name, "count": "1", **options}.items()]
    command = " ".join(["aigc-fast generate", shlex.quote(path.name), *words])
    return Order(wanted.count, seed, wanted.label, size, scale, wanted.settings, record, command)


def _write_shards(shards: Shards) -> None:
    """Makes those of the missing shards that are this process's."""
    rank, processes = launched()
    own = [shard for shard in shards.missing() if shard % processes == rank]
    items = sum(len(shards.order.items(shard)) for shard in own)
    begin, done = time.perf_counter(), 0

    def show(more: int) -> None:
        nonlocal done
        done += more
        bar.show(done, {}, done / (time.perf_counter() - begin))

    with ProgressBar(shards.model.name, items, shards.medium.unit, console if rank == 0 else None) as bar:
        try:
            shards.write(own, show)
        except ValueError as error:
            raise UserError(str(error)) from None
    whole = shards.write_index()
    if whole or rank == 0:
        told = f"{counted(shards.order.count, shards.medium.unit)} in {counted(shards.order.shards, 'shards')}"
        typer.echo(f"Wrote {told} to {shards.folder}" if whole else f"{counted(items, shards.medium.unit)} written")


def _drawing(model: Model, given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What was given of the medium's settings; settings and options that are of other media are refused."""
    for name in Medium.arrangement:
        if options[name] is not None and name not in medium_of(model).arrangement:
            raise UserError(f"--{name}: {model.name} makes {medium_of(model).unit}, which have none")
    for setting in _DRAWING:
        if setting not in medium_of(model).drawing_settings and chosen(given, [setting]):
            raise UserError(
                f"--{setting.name.replace('_', '-')}: {model.name} makes {medium_of(model).unit}, not "
                f"{_owners(setting)}"
            )
    return chosen(given, medium_of(model).drawing_settings)


def _wanted(model: Model, what: What | None, given: Mapping[str, Any], drawing: Mapping[str, Any]) -> Wanted:
    medium = medium_of(model)
    unasked = SHARDS if is_launched() and SHARDS in medium.kinds else _first(medium)
    kind = unasked if what is None else _KINDS[what.value]
    if kind not in medium.kinds:
        raise UserError(f"--what {kind.name}: {model.name} makes {', '.join(other.name for other in medium.kinds)}")
    if given["to-class"] is not None and kind is not INTERPOLATION:
        raise UserError(f"--to-class: only --what interpolation goes from class to class, not {kind.name}")
    label = class_of(model, given["class"])
    to_label = class_of(model, given["to-class"], "--to-class")
    if kind is not SHARDS and given["count"] is not None and given["count"] > _MOST:
        raise UserError(f"--count {given['count']}: expected at most {_MOST}, or --what shards")
    across = class_columns(model, 0) if label is None else 0
    count = given["count"] or kind.each * across or medium.kinds[kind]
    if kind is INTERPOLATION and given["columns"] == 1:
        raise UserError("--columns 1: a walk has at least 2 steps")
    columns = given["columns"] or {GRID: across or None, INTERPOLATION: _STEPS}.get(kind)
    if kind is INTERPOLATION and model.num_classes and label is None:
        # Within a class a walk may show little; from class to class it shows what the model has learned.
        label = [walk % model.num_classes for walk in range(count)]
        to_label = [(walk + 1) % model.num_classes for walk in range(count)] if to_label is None else to_label
    elif kind is MANIFOLD and model.num_classes and label is None:
        label = 0
    options = {name: value for name, value in given.items() if value is not None}
    options |= {name.replace("_", "-"): value for name, value in drawing.items()}
    show = _show if medium.streamed else None
    return Wanted(kind, count, count if kind is MANIFOLD else columns, label, to_label, options, drawing, show)


def _show(part: str) -> None:
    """Shows a part of a text at once; a model may have learned characters that a terminal takes for commands."""
    typer.echo(part.translate(_COMMANDS), nl=False)


def _name(path: Path, wanted: Wanted) -> str:
    """The file's name unless one is given: the run's, what is made, and what else was asked for."""
    run = path.resolve().parent.name if path.name == MODEL_FILE else path.name if path.is_dir() else path.stem
    parts = [run, wanted.kind.name, *(f"{name}-{value:.{_LONGEST}}" for name, value in _texts(wanted.options))]
    return re.sub(r"[^\w.-]+", "_", "-".join(parts))


def _texts(options: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in options.items()]


def _targets(target: Path, wanted: Wanted, medium: Medium, overwrite: bool) -> list[Path]:
    """The files to write, checked before any work is done, as are those that are written beside them."""
    suffix = medium.suffixes[0]
    if wanted.kind is SINGLE:
        width = len(str(wanted.count - 1))
        files = [make_folder(target) / f"{index:0{width}d}{suffix}" for index in range(wanted.count)]
    else:
        files = [target]
    if files[0].suffix.lower() not in medium.suffixes and not target.is_dir():
        raise UserError(f"{target}: expected a file name that ends in {' or '.join(medium.suffixes)}")
    for file in files:
        medium.check_target(file, wanted.settings)
        new_file(file, overwrite)
        for beside in medium.beside:
            new_file(file.with_suffix(beside), overwrite)
    return files


def _checked_draw(model: Model, wanted: Wanted, seed: int) -> Any:
    try:
        return wanted.kind.draw(model, wanted, seed)
    except ValueError as error:
        raise UserError(str(error)) from None


def _command(path: Path, wanted: Wanted, seed: int) -> str:
    """The command that makes the same again; the model file by its name alone."""
    options = {"what": wanted.kind.name, "count": wanted.count, "seed": seed, **wanted.options}
    words = [f"--{name} {shlex.quote(value)}" for name, value in _texts(options)]
    return " ".join(["aigc-fast generate", shlex.quote(path.name), *words])


def _classes_told(model: Model, wanted: Wanted) -> str:
    names = class_names(model)
    if wanted.kind is GRID and names and wanted.label is None and wanted.columns == len(names):
        return f"; columns: {listed(names)}"
    if isinstance(wanted.label, list) and isinstance(wanted.to_label, list):
        walks = [f"{names[start]} to {names[end]}" for start, end in zip(wanted.label, wanted.to_label, strict=True)]
        return f"; rows: {listed(walks)}"
    return f"; of class {names[wanted.label]}" if wanted.kind is MANIFOLD and names else ""
