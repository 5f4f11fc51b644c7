"""Pairs of texts to train on: functions and what they do, sequences and what becomes of them, or files of pairs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aigc_fast.checks import as_path, check_text
from aigc_fast.data.docstrings import described_functions
from aigc_fast.data.notes import some, text_of
from aigc_fast.data.text import HELD_OUT, TOKENIZERS, TokenDataset, check_split, check_tokenizer, decoded
from aigc_fast.errors import UserError
from aigc_fast.models.text import BPETokenizer, CharTokenizer, Tokenizer
from aigc_fast.wording import counted

Pair = tuple[str, str]

SOURCE, TARGET = "source", "target"
"""What the columns of a TSV and the fields of JSON are called."""
EXAMPLES = 8
"""How many sources are recorded with a model, at most, to be answered where none is given."""

_JSON = (".jsonl", ".json", ".ndjson")
_SEQUENCES = 30_000
_SHORTEST, _LONGEST = 3, 12


class PairDataset(TokenDataset[Pair]):
    """Pairs of texts (source, target) to train on and to evaluate on; see `TokenDataset`."""

    unit = "pairs"

    def record(self) -> dict[str, Any]:
        """See `Dataset.record`."""
        return {**super().record(), "examples": [source for source, _ in self.examples]}

    @property
    def examples(self) -> tuple[Pair, ...]:
        """A few pairs to show, held-out ones if there are any."""
        pairs = self.held_out or self.training
        return pairs[:: -(-len(pairs) // EXAMPLES)]

    def _form(self) -> str:
        held = counted(len(self.held_out), self.unit)
        return f"{self.tokenizer.vocab_size} {self.tokenizer.kind}; held out {held}"

    @staticmethod
    def joined(items: Sequence[Pair]) -> bytes:
        """See `TokenDataset.joined`."""
        return b"\0".join(text.encode(errors="surrogatepass") for pair in items for text in pair)


@dataclass(frozen=True)
class _Found:
    """Pairs as they were read.

    Attributes:
        pairs: all.
        groups: of each pair, what it shares with others that go with it to the same side of the split.
        name: where they come from.
        notes: what was left out.
    """

    pairs: list[Pair]
    groups: list[str]
    name: str
    notes: tuple[str, ...] = ()


def load_pairs(
    path: str | os.PathLike[str] | None = None,
    *,
    targets: str | os.PathLike[str] | None = None,
    source_field: str = SOURCE,
    target_field: str = TARGET,
    encoding: str | None = None,
    held_out: float = HELD_OUT,
    seed: int = 0,
    tokenizer: str | Tokenizer | None = None,
    vocab_size: int | None = None,
) -> PairDataset:
    """Loads training pairs of texts.

    Args:
        path: None for the functions of the installed standard library and torch, with their names and signatures as
            sources and the first lines of their documentation as targets, which differ between versions; "reverse" or
            "sort", if there is no such file, for sequences of letters and their reversed or sorted form; a file whose
            name ends in .jsonl, with a JSON object per line, or in .json, with a list of them; any other file has a
            source, a tab and a target per line, and its first line may name the columns.
        targets: a file with one target per line, if `path` is a file with one source per line.
        source_field, target_field: names in JSON objects, and of columns.
        encoding: of the files, by Python's name; None for UTF-8.
        held_out: the approximate share of the pairs that training does not see, in [0, 1): whole modules of functions,
            otherwise all pairs of a source, leaving at least one to train on.
        seed: of this choice.
        tokenizer: "subwords", "characters" or "bytes", as for `load_text`; or a `Tokenizer`; None for "subwords", or
            "characters" for sequences of letters.
        vocab_size: the greatest number of tokens of "subwords"; None for 2048.

    Returns:
        The pairs; `notes` says what was left out.

    Raises:
        TypeError: if an argument is of another type; the message names it.
        UserError: if a file is missing, damaged, not in that encoding or without pairs, the two files differ in length,
            there is nothing to hold out, or an argument is out of range or unknown.
    """
    check_text(encoding=encoding, source_field=source_field, target_field=target_field)
    check_split(held_out, seed)
    if tokenizer is None:
        tokenizer = CharTokenizer.kind if path is not None and _is_task(path) else BPETokenizer.kind
    check_tokenizer(tokenizer, vocab_size)
    found = _found(path, targets, (source_field, target_field), encoding)
    training, held = _split(found, held_out, seed)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = TOKENIZERS[tokenizer]([text for pair in training for text in pair], vocab_size)
    return PairDataset(
        training=training,
        held_out=held,
        tokenizer=tokenizer,
        sha256=hashlib.sha256(PairDataset.joined(found.pairs)).hexdigest(),
        name=found.name,
        notes=found.notes,
        share=held_out,
    )


class Task(str):
    """A name in `TASKS` as a path for `load_pairs`, whatever files there are."""


def _is_task(path: str | os.PathLike[str]) -> bool:
    return isinstance(path, Task) or (str(path) in TASKS and not Path(path).is_file())


def _found(
    path: str | os.PathLike[str] | None,
    targets: str | os.PathLike[str] | None,
    fields: tuple[str, str],
    encoding: str | None,
) -> _Found:
    if targets is not None and (path is None or _is_task(path)):
        raise UserError(f"targets={str(targets)!r}: expected a file of sources beside it (--data)")
    if path is None:
        return _functions()
    if _is_task(path):
        return _sequences(str(path))
    path = as_path("path", path)
    if targets is not None:
        pairs = _side_by_side(path, as_path("targets", targets), encoding)
    elif path.suffix.lower() in _JSON:
        pairs = _of_json(_text(path, encoding), path, fields)
    else:
        pairs = _of_columns(_text(path, encoding).split("\n"), path, fields)
    return _without_empty(pairs, path)


def _functions() -> _Found:
    modules: dict[Pair, str] = {}
    for one in described_functions():
        modules.setdefault((one.source, one.target), one.module)
    return _Found(list(modules), list(modules.values()), "the functions of Python and torch")


TASKS: dict[str, Callable[[str], str]] = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
}
"""What becomes of sequences of letters, by the name that `load_pairs` takes for a path."""


def _sequences(name: str) -> _Found:
    draw = random.Random(name)
    sources: dict[str, None] = {}
    while len(sources) < _SEQUENCES:
        letters = draw.choices(string.ascii_lowercase, k=draw.randint(_SHORTEST, _LONGEST))
        sources["".join(letters)] = None
    return _Found([(source, TASKS[name](source)) for source in sources], list(sources), f"sequences to {name}")


def _text(path: Path, encoding: str | None) -> str:
    if path.is_dir():
        raise UserError(f"{path}: cannot be read: expected a file of pairs, got a folder")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    text = decoded(content, path, encoding)
    if text is None or "\0" in text:
        raise UserError(f"{path}: holds no text")
    return text.removesuffix("\n")


def _side_by_side(path: Path, targets: Path, encoding: str | None) -> list[Pair]:
    sources, answers = (_text(file, encoding).split("\n") for file in (path, targets))
    if len(sources) != len(answers):
        raise UserError(
            f"{targets}: has {counted(len(answers), 'lines')}: expected {len(sources)}, one for each of {path}"
        )
    return list(zip(sources, answers, strict=True))


def _of_columns(lines: list[str], path: Path, fields: tuple[str, str]) -> list[Pair]:
    names = lines[0].split("\t")
    places, first = ((names.index(fields[0]), names.index(fields[1])), 1) if set(fields) <= set(names) else ((0, 1), 0)
    found = []
    for number, line in enumerate(lines[first:], first + 1):
        columns = line.split("\t")
        if not line.strip():
            columns = [""] * (max(places) + 1)
        elif len(columns) != (len(names) if first else 2):
            raise UserError(
                f"{path}: line {number} has {counted(len(columns), 'columns')}: expected "
                f"{len(names) if first else 'a source and a target with a tab between them'}, or sources alone and a "
                "file of targets beside (--targets)"
            )
        found.append((columns[places[0]], columns[places[1]]))
    return found


def _of_json(text: str, path: Path, fields: tuple[str, str]) -> list[Pair]:
    return [_of_object(value, place, path, fields) for place, value in _objects(text, path)]


def _objects(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    """What the lines hold, or a list of all; each with the place where it stands."""
    try:
        if text.lstrip().startswith("["):
            yield from ((f"item {number}", value) for number, value in enumerate(json.loads(text), 1))
            return
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        where = number if not text.lstrip().startswith("[") else getattr(error, "lineno", 1)
        raise UserError(f"{path}: line {where} is no JSON: {getattr(error, 'msg', error)}") from None


def _of_object(value: Any, place: str, path: Path, fields: tuple[str, str]) -> Pair:
    if not isinstance(value, dict):
        raise UserError(f"{path}: {place} is no JSON object: expected one with {' and '.join(map(repr, fields))}")
    for name in fields:
        if not isinstance(value.get(name), str):
            what = f"{name!r} is {type(value[name]).__name__}" if name in value else f"{name!r} is not there"
            raise UserError(
                f"{path}: {place}: {what}: expected texts in {' and '.join(map(repr, fields))} (--source-field, "
                "--target-field)"
            )
    return value[fields[0]], value[fields[1]]


def _without_empty(pairs: list[Pair], path: Path) -> _Found:
    kept = [pair for pair in pairs if all(map(str.strip, pair))]
    if not kept:
        raise UserError(f"{path}: holds no pairs")
    empty = [str(number) for number, pair in enumerate(pairs, 1) if not all(map(str.strip, pair))]
    notes = (f"{counted(len(empty), 'pairs')} left out, with an empty side: number {some(empty)}",) if empty else ()
    return _Found(kept, [source for source, _ in kept], text_of(path.name), notes)


def _split(found: _Found, held_out: float, seed: int) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Parts pairs, those of a group together, into those to train on and those held out, each in the order given."""
    if held_out == 0:
        return tuple(found.pairs), ()
    groups = dict.fromkeys(found.groups)
    if len(groups) < 2:
        raise UserError(f"held_out={held_out}: expected at least 2 pairs of different sources to part, got 1")
    sizes = dict.fromkeys(groups, 0)
    for group in found.groups:
        sizes[group] += 1
    names = list(groups)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    room, chosen = round(held_out * len(found.pairs)), set()
    for place in order[1:]:
        if sizes[names[place]] <= room:
            chosen.add(names[place])
            room -= sizes[names[place]]
    chosen = chosen or {min(names[1:], key=sizes.__getitem__)}
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair, group in zip(found.pairs, found.groups, strict=True):
        parts[group in chosen].append(pair)
    return tuple(parts[0]), tuple(parts[1])
