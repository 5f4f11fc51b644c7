"""From text to the numbers that models of text know, and back."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from aigc_fast.errors import UserError
from aigc_fast.wording import counted, listed

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a token stands as that is no text."""

BEGIN, END, UNKNOWN = SPECIAL = "<s>", "</s>", "<unk>"
"""What stands for the boundary, where documents begin and where they end, and for all words that are not known."""

_NAMED = 3


class Decoder(Protocol):
    """Turns tokens into text as they come."""

    def push(self, token: int) -> str:
        """The text that is complete with this token; empty in the midst of a character and at a boundary."""


class Tokenizer(ABC):
    """Maps text to numbered tokens, one of which marks where documents begin and end.

    Tokenizers are equal where their `config` is.

    Attributes:
        kind: its name for `tokenizer_from` and the command line: what its tokens are, in the plural.
        unknown: the token for everything that has none of its own; None if there is no such token.
    """

    kind: ClassVar[str]
    unknown: int | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens, including `boundary` and `unknown`: 0 to vocab_size - 1."""

    @property
    @abstractmethod
    def boundary(self) -> int:
        """The token before the first and after the last token of a document."""

    @property
    def start(self) -> int:
        """The token before the first token of a document; by default the `boundary`."""
        return self.boundary

    def encode_prompt(self, text: str) -> list[int]:
        """The text's tokens, preceded by those that the tokenizer puts before every text; errors as in `encode`."""
        return self.encode(text)

    def encode(self, text: str, *, strict: bool = True) -> list[int]:
        """The text's tokens, without a boundary; arguments and errors as in `encode_array`."""
        return self.encode_array(text, strict=strict).tolist()

    @abstractmethod
    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """The text's tokens, int64 (T,), without a boundary.

        Args:
            text: any text.
            strict: whether text without a token is refused even if there is an `unknown` token for it.

        Raises:
            UserError: if something in the text has no token; the message names it and its position.
        """

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; boundaries are left out, `unknown` and invalid UTF-8 become U+FFFD.

        Raises:
            ValueError: for a token out of range.
        """
        decoder = self.decoder()
        return "".join(map(decoder.push, tokens))

    @abstractmethod
    def decoder(self, before: str = "") -> Decoder:
        """A new decoder for a stream of tokens; its `push` raises ValueError for a token out of range.

        Args:
            before: the text that the tokens follow.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """A JSON-able dictionary from which `tokenizer_from` makes an equal tokenizer."""

    def checked(self, token: int) -> int:
        """The token; raises ValueError on one out of range."""
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token {token}: expected 0 to {self.vocab_size - 1}")
        return token

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.config() == other.config()

    def __hash__(self) -> int:
        return hash((self.kind, self.vocab_size))

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.vocab_size} tokens"


class CharTokenizer(Tokenizer):
    """A token for each character of an alphabet.

    Args:
        characters: the alphabet, each character once.
        unknown: whether there is a token for all other characters.

    Attributes:
        characters: in the order of their tokens, from 0 up; `boundary` and `unknown` follow.

    Raises:
        TypeError: if `characters` is not a str or `unknown` not a bool.
        ValueError: if a character is given twice.
    """

    kind = "characters"

    def __init__(self, characters: str, *, unknown: bool = False) -> None:
        if not isinstance(characters, str) or not isinstance(unknown, bool):
            raise TypeError(
                f"characters is {type(characters).__name__}, unknown is {type(unknown).__name__}: expected str and bool"
            )
        if len(set(characters)) != len(characters):
            raise ValueError("characters: expected each once, got some twice")
        self.characters = characters
        self.unknown = len(characters) + 1 if unknown else None
        codes = _code_points(characters)
        self._order = np.argsort(codes)
        self._sorted = codes[self._order]

    @classmethod
    def of(cls, texts: Iterable[str], *, unknown: bool = False) -> CharTokenizer:
        """A tokenizer of the characters that occur in the texts, in Unicode's order."""
        return cls("".join(sorted(set().union(*texts))), unknown=unknown)

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return len(self.characters) + 1 + (self.unknown is not None)

    @property
    def boundary(self) -> int:
        """See `Tokenizer.boundary`."""
        return len(self.characters)

    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """See `Tokenizer.encode_array`."""
        codes = _code_points(text)
        if not len(self._sorted):
            tokens, known = np.zeros(len(codes), np.int64), np.zeros(len(codes), bool)
        else:
            places = np.searchsorted(self._sorted, codes).clip(max=len(self._sorted) - 1)
            tokens, known = self._order[places], self._sorted[places] == codes
        if not known.all():
            if strict or self.unknown is None:
                raise _unknown(text, np.flatnonzero(~known), f"one of the {len(self.characters)} characters known")
            tokens = np.where(known, tokens, self.unknown)
        return tokens

    def decoder(self, before: str = "") -> Decoder:
        """See `Tokenizer.decoder`."""
        return _CharDecoder(self)

    def text_of(self, token: int) -> str:
        """The character; an empty string for the boundary, U+FFFD for `unknown`.

        Raises:
            ValueError: for a token out of range.
        """
        if self.checked(token) < len(self.characters):
            return self.characters[token]
        return "" if token == self.boundary else REPLACEMENT

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {"kind": self.kind, "characters": self.characters, "unknown": self.unknown is not None}


class _CharDecoder:
    def __init__(self, tokenizer: CharTokenizer) -> None:
        self.push = tokenizer.text_of


class ByteTokenizer(Tokenizer):
    """The bytes of UTF-8 as tokens 0 to 255: any text can be encoded."""

    kind = "bytes"
    vocab_size = 257
    boundary = 256

    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """See `Tokenizer.encode_array`; halves of surrogate pairs alone have no bytes."""
        try:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        except UnicodeEncodeError:
            places = [place for place, character in enumerate(text) if "\ud800" <= character <= "\udfff"]
            raise _unknown(text, places, "what UTF-8 can hold") from None

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        known = map(self.checked, tokens)
        return bytes(token for token in known if token != self.boundary).decode(errors="replace")

    def decoder(self, before: str = "") -> Decoder:
        """See `Tokenizer.decoder`; of a character whose last bytes never come, nothing is told."""
        return _ByteDecoder(self)

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {"kind": self.kind}


class _ByteDecoder:
    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if self._tokenizer.checked(token) == self._tokenizer.boundary:
            return ""
        return self._utf8.decode(bytes([token]))


class WordTokenizer(Tokenizer):
    """A token for each word of a vocabulary; words are separated by spaces, tabs and line ends.

    Decoded texts have one space between words.

    Args:
        words: the vocabulary, each word once, separated by spaces or as a list.
        unknown: whether there is a token for all other words.

    Attributes:
        words: in the order of their tokens, from 0 up; `boundary` and `unknown` follow.

    Raises:
        TypeError: if `words` is neither a str nor a list of them, or `unknown` not a bool.
        ValueError: if a word is given twice, contains spaces, is empty, or has a meaning in files: `<s>`, `</s>`,
            `<unk>`.
    """

    kind = "words"

    def __init__(self, words: str | Sequence[str], *, unknown: bool = False) -> None:
        given = _words_of(words) if isinstance(words, str) else words
        if not all(isinstance(word, str) for word in given) or not isinstance(unknown, bool):
            raise TypeError(
                f"words is {type(words).__name__}, unknown is {type(unknown).__name__}: expected str, or a list of "
                f"them, and bool"
            )
        self.words = tuple(given)
        for word in self.words:
            if special(word) in SPECIAL or _words_of(word) != [word]:
                raise ValueError(f"words: {word!r:.40}: expected a word without spaces, and none of {listed(SPECIAL)}")
        self._tokens = {word: token for token, word in enumerate(self.words)}
        if len(self._tokens) != len(self.words):
            raise ValueError("words: expected each once, got some twice")
        self.unknown = len(self.words) + 1 if unknown else None

    @classmethod
    def of(cls, texts: Iterable[str], *, unknown: bool = False) -> WordTokenizer:
        """A tokenizer of the words that occur in the texts, in Unicode's order."""
        found = {word for text in texts for word in _words_of(text)}
        return cls(sorted(word for word in found if special(word) not in SPECIAL), unknown=unknown)

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return len(self.words) + 1 + (self.unknown is not None)

    @property
    def boundary(self) -> int:
        """See `Tokenizer.boundary`."""
        return len(self.words)

    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """See `Tokenizer.encode_array`."""
        found = _words_of(text)
        unknown = [word for word in found if word not in self._tokens]
        if unknown and (strict or self.unknown is None):
            names = listed([repr(word) for word in dict.fromkeys(unknown)], _NAMED)
            raise UserError(
                f"text: unknown {names} in {counted(len(unknown), 'places')}: expected some of the {len(self.words)} "
                f"words known"
            )
        return np.array([self._tokens.get(word, self.unknown) for word in found], np.int64)

    def decoder(self, before: str = "") -> Decoder:
        """See `Tokenizer.decoder`."""
        return SpacedDecoder(self, before)

    def text_of(self, token: int) -> str:
        """The word; U+FFFD for `boundary` and `unknown`.

        Raises:
            ValueError: for a token out of range.
        """
        return self.words[token] if self.checked(token) < len(self.words) else REPLACEMENT

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {"kind": self.kind, "words": " ".join(self.words), "unknown": self.unknown is not None}


class SpacedDecoder:
    """Puts a space between two tokens, and before the first that follows other text.

    Args:
        tokenizer: has a `text_of` each token but the boundary.
        before: the text that the tokens follow.
    """

    def __init__(self, tokenizer: WordTokenizer, before: str) -> None:
        self._tokenizer = tokenizer
        self._space = " " if _words_of(before[-1:]) else ""

    def push(self, token: int) -> str:
        """See `Decoder.push`."""
        if self._tokenizer.checked(token) == self._tokenizer.boundary:
            return ""
        space, self._space = self._space, " "
        return space + self._tokenizer.text_of(token)


def tokenizer_from(config: Mapping[str, Any] | Tokenizer) -> Tokenizer:
    """The tokenizer of a `config`; a tokenizer as it is.

    Raises:
        UserError: if `config` does not describe a tokenizer.
    """
    if isinstance(config, Tokenizer):
        return config
    # Others build on this module.
    from aigc_fast.models.text import TOKENIZERS

    if not isinstance(config, Mapping) or config.get("kind") not in tuple(TOKENIZERS):
        raise UserError(
            f"tokenizer={config!r:.80}: expected a tokenizer, or the config of one: {', '.join(TOKENIZERS)}"
        )
    settings = {name: value for name, value in config.items() if name != "kind"}
    try:
        return TOKENIZERS[config["kind"]](**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"tokenizer: {error}") from None


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^ \t\n\v\f\r]+", text)


def special(word: str) -> str:
    """A word as it stands; of those that files of n-grams begin, end and know no others by, the one in lower case."""
    lower = word.lower() if word.startswith("<") else word
    return lower if lower in SPECIAL else word


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4")).astype(np.int64)


def _unknown(text: str, places: Sequence[int] | np.ndarray, expected: str) -> UserError:
    found = list(dict.fromkeys(text[place] for place in places))
    names = listed([f"{character!r} (U+{ord(character):04X})" for character in found], _NAMED)
    before = text[: places[0]]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    return UserError(
        f"text: unknown {names} in {counted(len(places), 'places')}, first in line {line}, column {column}: "
        f"expected {expected}"
    )
