"""Text to train on: the help that Python brings, or a text file or a folder of them."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from aigc_fast.checks import as_path, check_seed, check_text
from aigc_fast.data.dataset import Dataset
from aigc_fast.data.folder import files_below
from aigc_fast.data.notes import Notes, text_of
from aigc_fast.errors import UserError
from aigc_fast.models.text import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from aigc_fast.runtime.arguments import number
from aigc_fast.wording import counted

HELD_OUT = 0.1

_SHOWN_DIGITS = 12
# Far enough for a paragraph's end, near enough for the share that was asked for.
_REACH = 0.05
# Shorter lines are the same by chance.
_LINE = 20
_MOST_IN_COMMON = 0.1
_BYTE_ORDER_MARK = "\ufeff"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

VOCAB_SIZE = 2048

TOKENIZERS: dict[str, Callable[[Sequence[str], int | None], Tokenizer]] = {
    CharTokenizer.kind: lambda texts, size: CharTokenizer.of(texts, unknown=True),
    ByteTokenizer.kind: lambda texts, size: ByteTokenizer(),
    BPETokenizer.kind: lambda texts, size: BPETokenizer.train(texts, VOCAB_SIZE if size is None else size),
}
"""Tokenizers of training text, by their kinds."""


Item = TypeVar("Item")


@dataclass(frozen=True)
class TokenDataset(Dataset, Generic[Item]):
    """The base of data sets of texts, which a tokenizer turns into tokens: a training and a held-out part.

    Attributes:
        training: the items to train on, which the data set's length counts.
        held_out: the items that training does not see, to evaluate on; empty if `share` is 0.
        tokenizer: the `Tokenizer` of the texts.
        sha256: of both parts together, independent of the split: 64 hexadecimal digits.
        name: where the texts come from, for logs and provenance.
        notes: what was left out, changed or corrected when they were read, in lines to show.
        share: the approximate share that was to be held out.
    """

    training: tuple[Item, ...]
    held_out: tuple[Item, ...]
    tokenizer: Tokenizer
    sha256: str
    name: str
    notes: tuple[str, ...] = ()
    share: float = HELD_OUT
    labels: None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.training)

    @property
    def shape(self) -> dict[str, Any]:
        """`{"tokenizer": the tokenizer}`."""
        return {"tokenizer": self.tokenizer}

    @property
    def summary(self) -> str:
        """The number of items, their size and their checksum, in a line to show."""
        return f"{counted(len(self), self.unit)} of {self.name}, {self._form()}; SHA-256 {self.sha256[:_SHOWN_DIGITS]}…"

    def record(self) -> dict[str, Any]:
        """See `Dataset.record`."""
        return {**super().record(), "held_out": self.share, "sha256": self.sha256}

    @staticmethod
    @abstractmethod
    def joined(items: Sequence[Item]) -> bytes:
        """The items as bytes, with a separator that occurs in none of them."""

    def _content(self) -> Tensor:
        content = b"\0\0".join(map(self.joined, (self.training, self.held_out)))
        return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class TextDataset(TokenDataset[str]):
    """Documents, or parts of one, to train on and to evaluate on; see `TokenDataset`."""

    unit = "documents"

    def _form(self) -> str:
        size, held = (sum(map(len, part)) for part in (self.training, self.held_out))
        return (
            f"{counted(size, 'characters')}; held out {counted(len(self.held_out), self.unit)}, "
            f"{counted(held, 'characters')}"
        )

    @staticmethod
    def joined(items: Sequence[str]) -> bytes:
        """See `TokenDataset.joined`."""
        return b"\0".join(document.encode() for document in items)


def load_text(
    path: str | os.PathLike[str] | None = None,
    *,
    encoding: str | None = None,
    held_out: float = HELD_OUT,
    seed: int = 0,
    tokenizer: str | Tokenizer = CharTokenizer.kind,
    vocab_size: int | None = None,
) -> TextDataset:
    """Loads training text.

    Args:
        path: None for Python's help topics (`pydoc_data.topics`), one document per topic, which differ between
            versions of Python; a text file, which is one document; or a folder of text files, at any depth.
        encoding: of the files, by Python's name; None for UTF-8. Byte order marks are dropped, and CR LF becomes LF.
        held_out: the approximate share of the characters that training does not see, in [0, 1): whole documents that
            have little in common with others, leaving at least one to train on; of a single document its end, from the
            end of a paragraph or a line on.
        seed: of the choice of documents.
        tokenizer: "characters" (those of the training documents, and a token for all others), "bytes" or "subwords"
            (byte pairs that are frequent in the training documents); or a `Tokenizer`.
        vocab_size: the greatest number of tokens of "subwords"; None for 2048.

    Returns:
        The text; `notes` says what was left out, and whether held-out text occurs in training documents too.

    Raises:
        TypeError: if an argument is of another type; the message names it.
        UserError: if the file or folder is missing or holds no text, a file is not in that encoding, there is nothing
            to hold out, or an argument is out of range or unknown.
    """
    check_text(encoding=encoding)
    check_split(held_out, seed)
    check_tokenizer(tokenizer, vocab_size)
    found = (_topics(), "Python's help topics", ()) if path is None else _read(as_path("path", path), encoding)
    documents, name, notes = found
    training, held = split(documents, held_out, seed)
    known = _common_lines([*training, *held])[len(training) :]
    if any(share > _MOST_IN_COMMON for share in known):
        notes = (*notes, f"up to {max(known):.0%} of a held-out document's lines stand elsewhere in the corpus too")
    return TextDataset(
        training=training,
        held_out=held,
        tokenizer=tokenizer if isinstance(tokenizer, Tokenizer) else TOKENIZERS[tokenizer](training, vocab_size),
        sha256=hashlib.sha256(TextDataset.joined(documents)).hexdigest(),
        name=name,
        notes=notes,
        share=held_out,
    )


def check_split(held_out: float, seed: int) -> None:
    """Refuses what is no share to be held out, or no seed: by TypeError what is no number, else by UserError."""
    check_seed(seed)
    if not 0 <= number("held_out", held_out) < 1:
        raise UserError(f"held_out={held_out}: expected a share of 0 or more, below 1")


def check_tokenizer(tokenizer: str | Tokenizer, vocab_size: int | None) -> None:
    """Refuses, by UserError, what is neither a tokenizer nor the kind of one, or a size that is not its."""
    if not isinstance(tokenizer, Tokenizer) and tokenizer not in list(TOKENIZERS):
        raise UserError(f"tokenizer={tokenizer!r}: expected one of {', '.join(TOKENIZERS)}")
    if vocab_size is not None and tokenizer != BPETokenizer.kind:
        raise UserError(f"vocab_size={vocab_size}: expected tokenizer={BPETokenizer.kind!r} (--tokenizer) with it")


def _topics() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    return tuple(topics[name] for name in sorted(topics))


def split(documents: Sequence[str], held_out: float, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Parts documents into those to train on and those held out, each in the order given.

    Args:
        documents: at least one.
        held_out: the share of the characters, in [0, 1).
        seed: of the choice.

    Raises:
        UserError: where something is to be held out of a single document of less than two characters.
    """
    if held_out == 0:
        return tuple(documents), ()
    if len(documents) == 1:
        return _split_one(documents[0], held_out)
    room = held_out * sum(map(len, documents))
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    shares = _common_lines(documents)
    apart = [place for place in order if shares[place] <= _MOST_IN_COMMON] or order
    chosen: set[int] = set()
    for place in apart:
        if len(documents[place]) <= room:
            chosen.add(place)
            room -= len(documents[place])
    chosen = chosen or {min(apart, key=lambda place: len(documents[place]))}
    parts = ([], [])
    for place, document in enumerate(documents):
        parts[place in chosen].append(document)
    return tuple(parts[0]), tuple(parts[1])


def _common_lines(documents: Sequence[str]) -> list[float]:
    """The share of each document's lines that another one has too: copies would be remembered rather than foreseen."""
    lines = [{line for line in map(str.strip, text.split("\n")) if len(line) >= _LINE} for text in documents]
    seen = Counter(chain.from_iterable(lines))
    return [sum(seen[line] > 1 for line in own) / max(len(own), 1) for own in lines]


def _split_one(document: str, held_out: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if len(document) < 2:
        raise UserError(f"held_out={held_out}: expected text of at least 2 characters to part, got {len(document)}")
    wanted = min(max(round(len(document) * (1 - held_out)), 1), len(document) - 1)
    reach = max(1, round(_REACH * len(document)))
    for end in ("\n\n", "\n", " "):
        before = document.rfind(end, max(wanted - reach, 0), wanted) + len(end)
        after = document.find(end, wanted, wanted + reach) + len(end)
        near = [place for place in (before, after) if len(end) <= place < len(document)]
        if near:
            wanted = min(near, key=lambda place: abs(place - wanted))
            break
    return (document[:wanted],), (document[wanted:],)


def _read(path: Path, encoding: str | None) -> tuple[tuple[str, ...], str, tuple[str, ...]]:
    """Documents, name and notes of a file or folder."""
    try:
        if path.is_dir():
            notes = Notes(path)
            files = files_below(path)
        elif path.exists():
            notes = Notes(path.parent)
            files = [path]
        else:
            raise UserError(f"{path}: no such file or folder")
        found = [_document(file, encoding, notes) for file in files]
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from None
    documents = tuple(document for document in found if document is not None)
    if not documents:
        raise UserError(f"{path}: holds no text: {'; '.join(notes.lines) or 'no files'}")
    return documents, text_of(path.name), notes.lines


def _document(path: Path, encoding: str | None, notes: Notes) -> str | None:
    """A file's text; None where it is none, or empty."""
    content = path.read_bytes()
    text = decoded(content, path, encoding)
    if text is None or "\0" in text:
        notes.add("left out, no text", path)
        return None
    if not text.strip():
        notes.add("left out, empty or of white space alone", path)
        return None
    return text


def decoded(content: bytes, path: Path, encoding: str | None) -> str | None:
    """The text, with line ends as Python has them; None where the content is binary.

    Raises:
        UserError: where it is text of another encoding.
    """
    try:
        text = content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is None and b"\0" in content and not content.startswith(_UTF_16):
            return None
        raise _not_in(encoding, content, path, error) from None
    except (LookupError, ValueError):
        raise UserError(f"encoding={encoding!r}: expected a text encoding that Python knows, as latin-1") from None
    return text.removeprefix(_BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def _not_in(encoding: str | None, content: bytes, path: Path, error: UnicodeDecodeError) -> UserError:
    line = content.count(b"\n", 0, error.start) + 1
    likely = "utf-16" if content.startswith(_UTF_16) else "latin-1"
    advice = f"name its encoding (--encoding {likely}, for instance)" if encoding is None else "name another encoding"
    return UserError(
        f"{path}: expected {encoding or 'UTF-8'}, got the byte 0x{content[error.start]:02x} at offset {error.start}, "
        f"line {line}: {advice}"
    )
