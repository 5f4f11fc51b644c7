"""Tokenizers of other packages' models: the `tokenizers` library's, and none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from aigc_fast.checks import integer
from aigc_fast.errors import UserError
from aigc_fast.models.text.tokenizers import REPLACEMENT, Decoder, SpacedDecoder, Tokenizer

END = "<|endoftext|>"
_LEAST = 257
# Bytes of a character that are not all there may be so many tokens.
_LONGEST_CHARACTER = 3
_LONGEST_IN_UTF_8 = 4


def library() -> Any:
    """The `tokenizers` package.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise UserError("tokens of this model are the tokenizers package's: pip install 'aigc-fast[text]'") from None
    return tokenizers


def _halves(name: str) -> UserError:
    return UserError(f"{name}: expected what UTF-8 can hold, got half of a surrogate pair")


class _FixedTokenizer(Tokenizer):
    """A tokenizer of `size` tokens, whose `boundary` and `start` are given."""

    def __init__(self, size: int, boundary: int, start: int | None) -> None:
        for name, token in (("boundary", boundary), ("start", start)):
            if token is not None and integer(name, token, 0) >= size:
                raise ValueError(f"{name}={token}: expected 0 to {size - 1}")
        self._size, self._boundary, self._start = size, boundary, start

    @property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`."""
        return self._size

    @property
    def boundary(self) -> int:
        """See `Tokenizer.boundary`."""
        return self._boundary

    @property
    def start(self) -> int:
        """See `Tokenizer.start`."""
        return self._boundary if self._start is None else self._start


class BPETokenizer(_FixedTokenizer):
    """Subwords, by the `tokenizers` library: byte-pair encoding, or whatever else a tokenizer.json defines.

    Args:
        content: that of a tokenizer.json file.
        boundary: the token at the end of documents.
        start: the token before the first of a document; None for `boundary`.

    Raises:
        UserError: if the library is not installed, or the content is not that of a tokenizer.
        ValueError: for a token out of range.
    """

    kind = "subwords"

    def __init__(self, content: str, boundary: int, start: int | None = None) -> None:
        if not isinstance(content, str):
            raise TypeError(f"content is {type(content).__name__}: expected that of a tokenizer.json")
        try:
            self._tokenizer = library().Tokenizer.from_str(content)
        except UserError:
            raise
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"tokenizer: the content is not that of a tokenizer.json: {error}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        super().__init__(self._tokenizer.get_vocab_size(), boundary, start)
        self._content = content

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 2048) -> BPETokenizer:
        """Trains a byte-level byte-pair encoding, like GPT-2's, on texts; deterministic.

        Args:
            texts: the documents to train on.
            vocab_size: number of tokens, including those of the 256 bytes and the boundary; fewer if there is little
                text.

        Raises:
            UserError: if the library is not installed, for a size that is too small, or a single string.

        Source: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units", 2016.
        """
        if isinstance(texts, str):
            raise UserError("texts: expected several documents, got a single string: put it into a list")
        if integer("vocab_size", vocab_size, 1) < _LEAST:
            raise UserError(f"vocab_size={vocab_size}: expected at least {_LEAST}, of 256 bytes and the boundary")
        texts = list(texts)
        # Each pair that is joined leaves a byte less; the library takes memory for as many as it is told.
        most = _LEAST + _LONGEST_IN_UTF_8 * sum(map(len, texts))
        found = byte_level(library().models.BPE())
        alphabet = library().pre_tokenizers.ByteLevel.alphabet()
        trainer = library().trainers.BpeTrainer(
            vocab_size=min(vocab_size, most), special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        try:
            found.train_from_iterator(texts, trainer)
        except UnicodeEncodeError:
            raise _halves("texts") from None
        return cls(found.to_str(), found.token_to_id(END))

    @property
    def content(self) -> str:
        """The content of a tokenizer.json file."""
        return self._content

    def text_of(self, token: int) -> str | None:
        """The token's name in a tokenizer.json, such as <|endoftext|>."""
        return self._tokenizer.id_to_token(self.checked(token))

    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """See `Tokenizer.encode_array`; halves of surrogate pairs alone have no bytes."""
        return np.array(self._encoded(text, False), np.int64)

    def encode_prompt(self, text: str) -> list[int]:
        """See `Tokenizer.encode_prompt`."""
        return self._encoded(text, True)

    def _encoded(self, text: str, is_prompt: bool) -> list[int]:
        try:
            return self._tokenizer.encode(text, add_special_tokens=is_prompt).ids
        except (TypeError, UnicodeEncodeError):
            raise _halves("text") from None

    def decode(self, tokens: Iterable[int]) -> str:
        """See `Tokenizer.decode`."""
        known = map(self.checked, tokens)
        return self._tokenizer.decode([token for token in known if token != self._boundary])

    def decoder(self, before: str = "") -> Decoder:
        """See `Tokenizer.decoder`; of a character whose last bytes never come, nothing is told."""
        return _SubwordDecoder(self)

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {"kind": self.kind, "content": self._content, "boundary": self._boundary, "start": self._start}


class _SubwordDecoder:
    """Decodes the last tokens, with those before them: how a token is written may depend on the one before."""

    def __init__(self, tokenizer: BPETokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        self._tokens.append(self._tokenizer.checked(token))
        before = self._tokenizer.decode(self._tokens[: self._told])
        text = self._tokenizer.decode(self._tokens)
        if text.endswith(REPLACEMENT) and len(self._tokens) - self._told <= _LONGEST_CHARACTER:
            return ""
        self._tokens = self._tokens[self._told :]
        self._told = len(self._tokens)
        return text[len(before) :]


def byte_level(model: Any, digits_alone: bool = False) -> Any:
    """A tokenizer of the library that takes text for bytes, as GPT-2's does.

    Args:
        model: of the library.
        digits_alone: whether each digit is a piece of its own.
    """
    parts = library()
    found = parts.Tokenizer(model)
    by_bytes = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_digits = parts.pre_tokenizers.Digits(individual_digits=True)
    found.pre_tokenizer = parts.pre_tokenizers.Sequence([by_digits, by_bytes]) if digits_alone else by_bytes
    found.decoder = parts.decoders.ByteLevel()
    return found


class IdTokenizer(_FixedTokenizer):
    """For models without a tokenizer: text is the numbers of the tokens, separated by spaces.

    Args:
        size: number of tokens.
        boundary: the token at the end of documents.
        start: the token before the first of a document; None for `boundary`.

    Raises:
        ValueError: for a token out of range.
    """

    kind = "ids"

    def __init__(self, size: int, boundary: int, start: int | None = None) -> None:
        integer("size", size, 1)
        super().__init__(size, boundary, start)

    def encode_array(self, text: str, *, strict: bool = True) -> np.ndarray:
        """See `Tokenizer.encode_array`."""
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdecimal() and len(word) < 10 and int(word) < self._size):
                raise UserError(
                    f"text: unknown {word!r:.40}: the model has no tokenizer: expected tokens of 0 to "
                    f"{self._size - 1}, with spaces between them"
                )
        return np.array(list(map(int, words)), np.int64)

    def decoder(self, before: str = "") -> Decoder:
        """See `Tokenizer.decoder`."""
        return SpacedDecoder(self, before)

    def text_of(self, token: int) -> str:
        """The number; raises ValueError on one out of range."""
        return str(self.checked(token))

    def config(self) -> dict[str, Any]:
        """See `Tokenizer.config`."""
        return {"kind": self.kind, "size": self._size, "boundary": self._boundary, "start": self._start}
