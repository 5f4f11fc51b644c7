"""Many items in shards: tar files of as many each, made by any number of processes, and an index of them."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aigc_fast.errors import UserError
from aigc_fast.files import atomic, checksum, make_folder, unsettled
from aigc_fast.generation import provenance_of
from aigc_fast.media.kinds import SHARD_SIZE
from aigc_fast.media.medium import Medium
from aigc_fast.models import Model
from aigc_fast.ops.random.philox import LOW, philox4x32

INDEX = "index.json"
_DRAW = "draw.json"
_AT_ONCE = 50
"""Items that are drawn in one call, whatever is wanted: the number of a batch's rows can change the last bits."""
_DIGITS = 9
_MOST = 10**_DIGITS


def seeds_of(seed: int, indices: range) -> list[int]:
    """The seed of each item of a draw: 63 bits, Philox4x32-10's words of the index under the draw's seed."""
    places = torch.arange(indices.start, indices.stop)
    zero = torch.zeros_like(places)
    key = torch.tensor(seed & LOW), torch.tensor(seed >> 32)
    high, low, _, _ = philox4x32((places & LOW, places >> 32, zero, zero), key)
    return ((high >> 1 << 32) | low).tolist()


@dataclass(frozen=True)
class Order:
    """What is to be drawn.

    Attributes:
        count: how many items.
        seed: of the draw; each item has a seed of its own.
        label: the class of all; None for all classes in turn.
        size: items of a shard.
        scale: each pixel of a picture becomes a square of this side.
        drawing: the medium's `drawing_settings` that were given.
        record: what else each file's provenance says.
        command: what makes one item again, but for its seed and class.

    Raises:
        UserError: for a number out of range.
    """

    count: int
    seed: int = 0
    label: int | None = None
    size: int = SHARD_SIZE
    scale: int = 1
    drawing: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= _MOST:
            raise UserError(f"count={self.count}: expected 1 to {_MOST} items")
        if self.size < _AT_ONCE or self.size % _AT_ONCE:
            raise UserError(f"shard_size={self.size}: expected a multiple of {_AT_ONCE}")

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.count // self.size)

    def items(self, shard: int) -> range:
        """The indices of a shard's items."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))


class Shards:
    """Items of a model in tar files, `shard-000000.tar` and so on, and `index.json`, which tells of them.

    The files in a shard are named by the item's index, as WebDataset and `tar` read them. An item's bits depend on the
    model, the seed and its index alone (on one kind of machine): not on how many there are, how they are split, or what
    was there already. Shards that are there stay: a run that ended early goes on where it was.

    Args:
        folder: of the shards; made when missing.
        model: to draw from.
        medium: of the model.
        order: what is to be drawn.

    Raises:
        UserError: when the folder can't be written to, or holds another draw.
    """

    def __init__(self, folder: Path, model: Model, medium: Medium, order: Order) -> None:
        self.folder, self.model, self.medium, self.order = folder, model, medium, order
        make_folder(folder)
        self._check_same_draw()

    def missing(self) -> list[int]:
        """The shards that are not there, or hold fewer items than they should."""
        return [shard for shard in range(self.order.shards) if self._entry(shard) is None]

    def write(self, shards: Sequence[int], show: Callable[[int], None] = lambda items: None) -> None:
        """Makes shards.

        Args:
            shards: their numbers.
            show: called with how many items there are of each shard that is done.

        Raises:
            UserError: when a file can't be written, or the settings do not suit the model.
        """
        for shard in shards:
            self._write(shard)
            show(len(self.order.items(shard)))

    def write_index(self) -> bool:
        """Writes the index where all shards are there; whether they are.

        Several processes may do so at once: they write the same.
        """
        entries = [self._entry(shard) for shard in range(self.order.shards)]
        if None in entries:
            return False
        content = {**self._settings(), "count": self.order.count, "shards": entries}
        with atomic(self.folder / INDEX) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return True

    def _settings(self) -> dict[str, Any]:
        """What two draws share that can be one."""
        order = self.order
        drawn = {"seed": order.seed, "class": order.label, "scale": order.scale, "settings": dict(order.drawing)}
        by = {"model": self.model.name, **{name: order.record.get(name) for name in ("model_checksum", "device")}}
        return {**by, **drawn, "shard_size": order.size}

    def _check_same_draw(self) -> None:
        marker = self.folder / _DRAW
        # Asked in this order: another process writes the marker before its first shard.
        holds_shards = any(self.folder.glob("shard-*"))
        if not marker.exists():
            if holds_shards:
                raise UserError(f"{self.folder}: holds shards of unknown origin: choose another --out")
            with atomic(marker) as temporary:
                temporary.write_text(json.dumps(self._settings()) + "\n", encoding="utf-8")
        there, here = _json(marker), self._settings()
        for name, value in here.items():
            if there.get(name) != value:
                raise UserError(
                    f"{self.folder}: holds shards whose {name} is {there.get(name)}, not {value}: choose another --out"
                )

    def _path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:06d}.tar"

    def _entry(self, shard: int) -> dict[str, Any] | None:
        """What the index says of a shard; None where it is not whole."""
        path = self._path(shard)
        beside = path.with_suffix(".json")
        if not (path.exists() and beside.exists()):
            return None
        entry, items = _json(beside), self.order.items(shard)
        whole = (entry.get("first"), entry.get("bytes")) == (items.start, path.stat().st_size)
        return entry if whole and entry.get("count") == len(items) else None

    def _write(self, shard: int) -> None:
        items, path = self.order.items(shard), self._path(shard)
        with tempfile.TemporaryDirectory() as place, atomic(path) as temporary:
            with unsettled():
                for index, seed, label, item in self._drawn(items):
                    self._write_item(Path(place), index, seed, label, item)
            _pack(sorted(Path(place).iterdir()), temporary)
            entry = {"file": path.name, "first": items.start, "count": len(items), **_facts(temporary)}
        with atomic(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(entry) + "\n", encoding="utf-8")

    def _write_item(self, place: Path, index: int, seed: int, label: int | None, item: Any) -> None:
        file = place / f"{index:0{_DIGITS}d}{self.medium.suffixes[0]}"
        of_class = "" if label is None else f" --class {label}"
        command = f"{self.order.command} --seed {seed}{of_class}"
        facts = {**self.order.record, **self.order.drawing, "index": index, "command": command}
        record = provenance_of(self.model, seed, **facts)
        self.medium.write(file, item, self.model, record, self.order.scale)

    def _drawn(self, items: range) -> Iterator[tuple[int, int, int | None, Any]]:
        """The index, the seed, the class and the item, of each."""
        for first in range(items.start, items.stop, _AT_ONCE):
            whole = range(first, first + _AT_ONCE)
            seeds = seeds_of(self.order.seed, whole)
            labels = self._labels(whole)
            found = self.medium.draw_each(self.model, seeds, labels, **self.order.drawing)
            for index, seed, label, item in zip(whole, seeds, labels or [None] * len(whole), found, strict=True):
                if index in items:
                    yield index, seed, label, item

    def _labels(self, items: range) -> list[int] | None:
        classes = self.model.num_classes
        if not classes:
            return None
        return [index % classes if self.order.label is None else self.order.label for index in items]


def _pack(files: Sequence[Path], target: Path) -> None:
    """A tar file of files by their names, the same bytes for the same content."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for file in files:
            content, entry = file.read_bytes(), tarfile.TarInfo(file.name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))


def _facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "crc32": checksum(path)}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}): delete it to have it generated again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged: delete it to have it generated again")
    return found
