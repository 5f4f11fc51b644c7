"""N-gram models in ARPA files, as SRILM, kenlm and others write and read them."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.models.text.kneser_ney import MAX_ORDER, Tables
from aigc_fast.models.text.tokenizers import (
    BEGIN,
    END,
    SPECIAL,
    UNKNOWN,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    special,
)
from aigc_fast.wording import listed

_NEVER = -99.0
"""What stands for the logarithm of 0."""
_HEADER = re.compile(r"ngram[ \t]+(\d{1,3})[ \t]*=[ \t]*(\d{1,18})")
_ESCAPED = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_SHOWN = 60
_KINDS = WordTokenizer.kind, CharTokenizer.kind, ByteTokenizer.kind


def words(tokenizer: Tokenizer) -> list[str]:
    """The word that stands for each token in an ARPA file: the word, or the character or byte, an escape where it is
    no visible one; `</s>` for the boundary.

    Raises:
        UserError: for a tokenizer of something else.
    """
    if isinstance(tokenizer, WordTokenizer):
        own = list(tokenizer.words)
    elif isinstance(tokenizer, ByteTokenizer):
        own = [chr(byte) if 0x20 < byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in range(256)]
    elif isinstance(tokenizer, CharTokenizer):
        own = list(map(_word, tokenizer.characters))
    else:
        raise UserError(f"tokenizer={tokenizer.kind!r}: ARPA files are of {listed(_KINDS)}")
    return [*own, END, *([] if tokenizer.unknown is None else [UNKNOWN])]


def _word(character: str) -> str:
    if character.isprintable() and character not in " \\":
        return character
    return f"\\u{ord(character):04x}" if character <= "\uffff" else f"\\U{ord(character):08x}"


def write_arpa(path: str | os.PathLike[str], tables: Tables, tokenizer: Tokenizer) -> None:
    """Writes an ARPA file, whole or not at all.

    Raises:
        UserError: when it can't be written.
    """
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in _lines(tables, tokenizer))


def _lines(tables: Tables, tokenizer: Tokenizer) -> Iterator[str]:
    sizes = [len(level) for level in tables.logs]
    yield "\\data\\"
    # The boundary is two words: where documents begin and where they end.
    yield from (f"ngram {n}={size + (n == 1)}" for n, size in enumerate(sizes, 1))
    last = words(tokenizer)
    contexts = [BEGIN if token == tokenizer.boundary else word for token, word in enumerate(last)]
    grams = last
    for n, logs in enumerate(tables.logs, 1):
        yield f"\n\\{n}-grams:"
        if n > 1:
            places, tokens = np.divmod(tables.keys[n - 2], tokenizer.vocab_size)
            grams = [f"{contexts[place]} {last[token]}" for place, token in zip(places, tokens, strict=True)]
            contexts = grams
        shown = _shown(logs)
        backoffs = [f"\t{value}" for value in _shown(tables.backoffs[n - 1])] if n < len(sizes) else [""] * len(grams)
        if n == 1:
            yield f"{_NEVER:g}\t{BEGIN}{backoffs[tokenizer.boundary]}"
            backoffs[tokenizer.boundary] = ""
        yield from (f"{log}\t{gram}{left}" for log, gram, left in zip(shown, grams, backoffs, strict=True))
    yield "\n\\end\\"


def _shown(values: np.ndarray) -> list[str]:
    """The fewest digits that give the same float32 again."""
    return values.astype(np.float32).astype(str).tolist()


class _Entries(NamedTuple):
    """The n-grams of a section.

    Attributes:
        grams: the words of each.
        logs: log10 of the probability of each.
        backoffs: of each, 0 where there is none.
        numbers: of the lines.
    """

    grams: list[list[str]]
    logs: list[float]
    backoffs: list[float]
    numbers: list[int]


def read_arpa(path: str | os.PathLike[str], kind: str | None = None) -> tuple[Tables, Tokenizer]:
    """The model of an ARPA file and its tokenizer.

    Args:
        path: of the file.
        kind: of the tokenizer, "words", "characters" or "bytes"; None for characters or bytes where all words are such,
            or some are escaped as `words` has them, and words otherwise.

    Raises:
        UserError: when the file is missing or damaged, with the line, or has words of another kind.
    """
    if kind not in (None, *_KINDS):
        raise UserError(f"tokenizer={kind!r}: expected None or one of {listed(_KINDS)}")
    reader = _Reader(path)
    counts = _counts(reader)
    entries = _section(reader, 1, counts)
    tokenizer, tokens = _vocabulary(reader, entries, kind)
    logs, backoffs = _unigrams(entries, tokens, tokenizer.vocab_size)
    tables = Tables([], [logs], [backoffs])
    for n in range(2, len(counts) + 1):
        _add(tables, reader, _section(reader, n, counts), tokens)
    tables.backoffs.pop()
    if (line := reader.line()) != "\\end\\":
        raise reader.wrong(f"expected \\end\\, got {line!r:.{_SHOWN}}")
    return tables, tokenizer


class _Reader:
    """The lines of a file that are not blank, and where they stand.

    Attributes:
        number: of the line that was read last, from 1.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self.number = path, 0
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        try:
            self._lines = content.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            self.number = content.count(b"\n", 0, error.start) + 1
            raise self.wrong(f"expected an ARPA file in UTF-8, got the byte 0x{content[error.start]:02x}") from None

    def line(self) -> str:
        """The next line, without the space around it."""
        while self.number < len(self._lines):
            self.number += 1
            if line := self._lines[self.number - 1].strip(" \t\r"):
                return line
        raise self.wrong("expected \\end\\, got the end of the file")

    def wrong(self, what: str, number: int | None = None) -> UserError:
        """What is wrong in a line, by default the one that was read last."""
        return UserError(f"{self._path}: line {number or self.number}: {what}")


def _counts(reader: _Reader) -> list[int]:
    """How many n-grams of each order the file says it has; what stands before is a comment."""
    try:
        while reader.line() != "\\data\\":
            pass
    except UserError:
        raise reader.wrong("expected an ARPA file, got one without \\data\\") from None
    counts: list[int] = []
    while match := _HEADER.fullmatch(line := reader.line()):
        if int(match[1]) != len(counts) + 1:
            raise reader.wrong(f"expected the number of {len(counts) + 1}-grams, got {line!r:.{_SHOWN}}")
        if len(counts) == MAX_ORDER:
            raise reader.wrong(f"expected n-grams of order 1 to {MAX_ORDER}, got {line!r}")
        counts.append(int(match[2]))
    expected = "\\1-grams:" if counts else "the number of 1-grams"
    if line != expected:
        raise reader.wrong(f"expected {expected}, got {line!r:.{_SHOWN}}")
    return counts


def _section(reader: _Reader, n: int, counts: list[int]) -> _Entries:
    """The n-grams of an order; the heading of the first one has been read."""
    if n > 1 and (line := reader.line()) != f"\\{n}-grams:":
        raise reader.wrong(f"expected \\{n}-grams:, got {line!r:.{_SHOWN}}")
    entries = _Entries([], [], [], [])
    for found in range(counts[n - 1]):
        line = reader.line()
        if line.startswith("\\"):
            raise reader.wrong(f"expected {counts[n - 1]} {n}-grams, as the file says above, got {found}")
        fields = [field for field in line.replace("\t", " ").split(" ") if field]
        if len(fields) != n + 1 and (len(fields) != n + 2 or n == len(counts)):
            raise reader.wrong(f"expected a {n}-gram and its logarithms, got {line!r:.{_SHOWN}}")
        entries.grams.append(list(map(special, fields[1 : n + 1])))
        entries.logs.append(_logarithm(reader, fields[0], 0))
        entries.backoffs.append(_logarithm(reader, fields[-1], math.inf) if len(fields) == n + 2 else 0.0)
        entries.numbers.append(reader.number)
    return entries


def _logarithm(reader: _Reader, field: str, most: float) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not value <= most or value == math.inf:
        raise reader.wrong(f"expected a logarithm{' of a probability' if most == 0 else ''}, got {field!r:.{_SHOWN}}")
    return max(value, _NEVER)


def _vocabulary(reader: _Reader, entries: _Entries, kind: str | None) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer of the 1-grams, and the token of each word."""
    lines = {}
    for (word,), number in zip(entries.grams, entries.numbers, strict=True):
        if word in lines:
            raise reader.wrong(f"{word!r} stands twice among the 1-grams", number)
        lines[word] = number
    own, unknown = [word for word in lines if word not in SPECIAL], UNKNOWN in lines
    codes = {word: _code(word) for word in own}
    if kind is None and None in codes.values() and not any(map(_ESCAPED.fullmatch, own)):
        kind = WordTokenizer.kind
    if kind == WordTokenizer.kind:
        tokenizer: Tokenizer = WordTokenizer(own, unknown=unknown)
        tokens = {word: token for token, word in enumerate(own)}
    else:
        tokenizer, tokens = _alphabet(reader, codes, lines, kind, unknown)
    if tokenizer.unknown is not None:
        tokens[UNKNOWN] = tokenizer.unknown
    return tokenizer, {**tokens, BEGIN: tokenizer.boundary, END: tokenizer.boundary}


def _alphabet(
    reader: _Reader, codes: dict[str, int | None], lines: dict[str, int], kind: str | None, unknown: bool
) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer of words that are characters, or bytes where one is escaped as such, and the token of each."""
    word_of: dict[str, str] = {}
    for word, code in codes.items():
        if code is None:
            raise reader.wrong(f"expected a character or a byte as a word, got {word!r:.{_SHOWN}}", lines[word])
        if chr(code) in word_of:
            raise reader.wrong(f"{word!r} stands twice among the 1-grams", lines[word])
        word_of[chr(code)] = word
    if kind == ByteTokenizer.kind or (kind is None and any(word.startswith("\\x") for word in codes)):
        return ByteTokenizer(), {word: code for word, code in codes.items() if code is not None and code < 256}
    tokenizer = CharTokenizer("".join(sorted(word_of)), unknown=unknown)
    return tokenizer, {word_of[character]: token for token, character in enumerate(tokenizer.characters)}


def _code(word: str) -> int | None:
    """The code of a character or byte; None of other words."""
    if len(word) == 1:
        return ord(word)
    escape = _ESCAPED.fullmatch(word)
    code = int(next(filter(None, escape.groups())), 16) if escape else sys.maxunicode + 1
    return code if code <= sys.maxunicode else None


def _unigrams(entries: _Entries, tokens: dict[str, int], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(logs, backoffs), each (V,): the boundary's are those of `</s>` and of `<s>`."""
    logs, backoffs = np.full(vocab_size, _NEVER), np.zeros(vocab_size)
    for (word,), log, backoff in zip(entries.grams, entries.logs, entries.backoffs, strict=True):
        token = tokens.get(word)
        if token is not None and word != BEGIN:
            logs[token] = log
        if token is not None and word != END:
            backoffs[token] = backoff
    return logs, backoffs


def _add(tables: Tables, reader: _Reader, entries: _Entries, tokens: dict[str, int]) -> None:
    """Adds the n-grams of the next order to the tables."""
    keys = _keys(tables, reader, entries, tokens)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if len(again := np.flatnonzero(keys[1:] == keys[:-1])):
        entry = order[again[0] + 1]
        raise reader.wrong(f"{_told(entries.grams[entry])} stands twice", entries.numbers[entry])
    tables.keys.append(keys)
    tables.logs.append(np.array(entries.logs)[order])
    # After a document's end there is nothing to back off to.
    ended = keys % len(tables.logs[0]) == tokens[END]
    tables.backoffs.append(np.where(ended, 0.0, np.array(entries.backoffs)[order]))


def _keys(tables: Tables, reader: _Reader, entries: _Entries, tokens: dict[str, int]) -> np.ndarray:
    """The keys of n-grams, in their order in the file."""
    rows = np.empty((len(entries.grams), len(tables.logs) + 1), np.int64)
    for row, gram, number in zip(rows, entries.grams, entries.numbers, strict=True):
        if BEGIN in gram[1:] or END in gram[:-1]:
            raise reader.wrong(f"expected {BEGIN} as a first and {END} as a last word, got {_told(gram)}", number)
        try:
            row[:] = [tokens[word] for word in gram]
        except KeyError as error:
            raise reader.wrong(f"{error.args[0]!r:.{_SHOWN}} is not among the 1-grams", number) from None
    place, vocab_size = rows[:, 0], len(tables.logs[0])
    for n, known in enumerate(tables.keys, 2):
        key = place * vocab_size + rows[:, n - 1]
        place = np.searchsorted(known, key)
        if len(lacking := np.flatnonzero(np.append(known, -1)[place] != key)):
            gram, number = (part[lacking[0]] for part in (entries.grams, entries.numbers))
            raise reader.wrong(f"{_told(gram[:n])} is not among the {n}-grams, but {_told(gram)} is there", number)
    return place * vocab_size + rows[:, -1]


def _told(gram: list[str]) -> str:
    return repr(" ".join(gram))
