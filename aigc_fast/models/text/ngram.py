"""The n-gram model: how often each token came after the few before it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_fast import functional
from aigc_fast.checks import integer
from aigc_fast.errors import UserError
from aigc_fast.models.text.arpa import read_arpa, write_arpa
from aigc_fast.models.text.base import TextModel
from aigc_fast.models.text.kneser_ney import MAX_ORDER, Tables, estimate
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.tokenizers import Tokenizer

_LN_10 = math.log(10)
_BUFFERS = ("sizes", "keys", "logs", "backoffs")


class NGram(TextModel):
    """An n-gram model with interpolated modified Kneser-Ney smoothing, in back-off form.

    Before it is fitted, all tokens are equally probable. Once fitted, every token has a probability above 0 in any
    context, and they sum to 1.

    Args:
        tokenizer: a `Tokenizer` or its `config`.
        order: n, the length of the longest n-grams, 1 to 100: a token depends on the n - 1 before it.
        num_classes: must be None; text has no classes.

    Attributes:
        order: n.
        sizes: int64 (n,), the number of n-grams of each order.
        keys, logs, backoffs: int64 and float32, the `Tables` of the n-grams of all orders, one after the other.

    Raises:
        TypeError, ValueError: for an order that is not an integer or out of range, or an invalid tokenizer.

    Example:
        >>> model = NGram(tokenizer=CharTokenizer.of(texts), order=6).fit(texts)
        >>> model.generate("The ", length=200, temperature=0.8)

    With a `WordTokenizer`, documents are lines, or other units such as sentences.

    Equivalent to `lmplz --discount_fallback` of kenlm with documents as lines and tokens as words, except for the one
    n-gram of each order that it reads last and counts differently. Source: Chen and Goodman, "An empirical study of
    smoothing techniques for language modeling", 1998.
    """

    name, family = "ngram", "n-grams"
    trainer = "aigc_fast.training.ngram:NGramTrainer"

    sizes: Tensor
    keys: Tensor
    logs: Tensor
    backoffs: Tensor

    def __init__(self, *, tokenizer: Tokenizer | Mapping[str, Any], order: int = 6, num_classes: None = None) -> None:
        order = integer("order", order, 1)
        if order > MAX_ORDER:
            raise ValueError(f"order={order}: expected at most {MAX_ORDER}")
        super().__init__(tokenizer=tokenizer, num_classes=num_classes, order=order)
        self.order = order
        vocab_size = self.tokenizer.vocab_size
        for name, dtype in zip(_BUFFERS, (torch.int64, torch.int64, torch.float32, torch.float32), strict=True):
            self.register_buffer(name, torch.empty(0, dtype=dtype))
        none = [np.zeros(0)] * (self.order - 1)
        logs = [np.full(vocab_size, -math.log10(vocab_size)), *none]
        self._set(Tables(none, logs, [np.zeros(len(level)) for level in logs[:-1]]))

    def _set(self, tables: Tables) -> None:
        parts = ([len(level) for level in tables.logs], *(_joined(part) for part in tables))
        for name, part in zip(_BUFFERS, parts, strict=True):
            before = getattr(self, name)
            setattr(self, name, torch.as_tensor(part, dtype=before.dtype, device=before.device))

    def tables(self) -> Tables:
        """The n-grams of each order; the logarithms as they are kept, or in float32 where NumPy has no such type."""
        sizes = self.sizes.tolist()
        logs, backoffs = (
            part.to(torch.promote_types(part.dtype, torch.float32)) for part in (self.logs, self.backoffs)
        )
        parts = ((self.keys, sizes[1:]), (logs, sizes), (backoffs, sizes[:-1]))
        return Tables(*([level.cpu().numpy() for level in part.split(lengths)] for part, lengths in parts))

    def fit(self, texts: Iterable[str]) -> NGram:
        """Counts the n-grams of documents, replacing those of an earlier fit.

        Args:
            texts: the documents, at least one of them not empty; characters that the tokenizer does not know count as
                its `unknown`.

        Returns:
            The model itself.

        Raises:
            UserError: if there is no text, or it has unknown characters and there is no token for them.
        """
        if isinstance(texts, str):
            raise UserError("texts: expected several documents, got a single string: put it into a list")
        boundary = np.array([self.tokenizer.boundary])
        documents = [self.tokenizer.encode_array(text, strict=False) for text in texts]
        if not any(map(len, documents)):
            raise UserError("texts: expected a document that is not empty, got none")
        tokens = np.concatenate([boundary, *(part for document in documents for part in (document, boundary))])
        self._set(estimate(tokens, self.order, self.tokenizer.vocab_size, self.tokenizer.boundary))
        return self

    @torch.no_grad()
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """See `TextModel.log_probabilities`; of the model's dtype, without gradients."""
        self.check_tokens(tokens)
        vocab_size = self.tokenizer.vocab_size
        tokens = tokens.to(self.device)
        grams = torch.cat([tokens.new_tensor([self.tokenizer.boundary]), tokens])
        sizes = self.sizes.tolist()
        logs, keys, backoffs = self.logs.split(sizes), self.keys.split(sizes[1:]), self.backoffs.split(sizes[:-1])
        found = logs[0][tokens].double()
        for n in range(2, self.order + 1):
            context = grams[:-1]
            grams = _places(keys[n - 2], context, tokens, vocab_size)
            # Where the longer n-gram is not known, what is left after the context is shared out by the shorter ones.
            found = torch.where(grams >= 0, _at(logs[n - 1], grams), found + _at(backoffs[n - 2], context))
            grams = torch.cat([grams.new_tensor([-1]), grams])
        return (found * _LN_10).to(self.dtype)

    def _draw(self, context: list[int], sampling: Sampling, generator: torch.Generator | None) -> Iterator[list[int]]:
        """See `TextModel._draw`: a token at a time, each by a number of one draw."""
        tables = self.tables()
        device = self.device if generator is None else generator.device
        uniforms = functional.rand(sampling.length, generator=generator, dtype=torch.float64, device=device)
        grams: list[int] = []
        for token in context[1 - self.order :] if self.order > 1 else ():
            grams = self._after(tables, grams, token)
        for uniform in uniforms.tolist():
            token = sampling.choose(self._next(tables, grams), uniform)
            grams = self._after(tables, grams, token)
            yield [token]

    def _next(self, tables: Tables, grams: list[int]) -> np.ndarray:
        """(V,), natural logarithms of the probabilities after n-grams that end in one place; `unknown` has none.

        Args:
            tables: the model's.
            grams: the places of those of order 1, 2, ...; -1 where there is none.
        """
        vocab_size = self.tokenizer.vocab_size
        found = tables.logs[0].astype(np.float64)
        for n, context in enumerate(grams, 1):
            if context < 0:
                continue
            found += tables.backoffs[n - 1][context]
            keys = tables.keys[n - 1]
            begin, end = np.searchsorted(keys, (context * vocab_size, (context + 1) * vocab_size))
            found[keys[begin:end] - context * vocab_size] = tables.logs[n][begin:end]
        if self.tokenizer.unknown is not None:
            found[self.tokenizer.unknown] = -math.inf
        return found * _LN_10

    def _after(self, tables: Tables, grams: list[int], token: int) -> list[int]:
        """The n-grams that end with a further token, shorter than the model's longest."""
        found = [token] if self.order > 1 else []
        for keys, context in zip(tables.keys, grams[: self.order - 2], strict=False):
            key = context * self.tokenizer.vocab_size + token
            place = int(np.searchsorted(keys, key))
            found.append(place if context >= 0 and place < len(keys) and keys[place] == key else -1)
        return found

    def to_arpa(self, path: str | os.PathLike[str]) -> None:
        """Writes the model as an ARPA file, which kenlm, SRILM and `from_arpa` read.

        The file's words are the tokenizer's tokens: words as they are; characters or bytes, with spaces, control
        characters and backslashes written as `\\u0020`, and bytes outside visible ASCII as `\\x20`.

        Raises:
            UserError: if the file can't be written, or the tokenizer's tokens can't be its words.
        """
        write_arpa(path, self.tables(), self.tokenizer)

    @classmethod
    def from_arpa(cls, path: str | os.PathLike[str], tokenizer: str | None = None) -> NGram:
        """Loads an ARPA file, as written by kenlm, SRILM and `to_arpa`; the model is in eval mode.

        A missing back-off weight counts as 0; `<S>`, `</S>` and `<UNK>` are read as `<s>`, `</s>` and `<unk>`.

        Args:
            path: of the file.
            tokenizer: "words", "characters" or "bytes": what the file's words are; None for characters or bytes if all
                words are such as `to_arpa` writes them, otherwise words.

        Raises:
            UserError: if the file is missing, damaged, or has other words, with the line; or for another tokenizer.
        """
        tables, own = read_arpa(path, tokenizer)
        model = cls(tokenizer=own, order=len(tables.logs))
        model._set(tables)
        return model.eval()

    def _load_from_state_dict(self, state_dict: MutableMapping[str, Any], prefix: str, *rest: Any) -> None:
        loaded = [state_dict.get(prefix + name) for name in _BUFFERS]
        if all(isinstance(part, Tensor) for part in loaded):
            if wrong := self._wrong(*loaded):
                rest[-1].append(f"{self.name}: {wrong}")
                return
            for name, part in zip(_BUFFERS, loaded, strict=True):
                setattr(self, name, getattr(self, name).new_empty(part.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _wrong(self, sizes: Tensor, keys: Tensor, logs: Tensor, backoffs: Tensor) -> str | None:
        """What is wrong with tables that come from outside; nothing of them is looked up where it is not there."""
        if sizes.dtype != torch.int64 or sizes.shape != (self.order,) or sizes.min() < 0:
            return f"sizes: expected those of {self.order} orders, got {sizes.dtype} {tuple(sizes.shape)}"
        lengths = sizes.tolist()
        vocab_size = self.tokenizer.vocab_size
        wanted = {"keys": sum(lengths[1:]), "logs": sum(lengths), "backoffs": sum(lengths[:-1])}
        for (name, length), part in zip(wanted.items(), (keys, logs, backoffs), strict=True):
            if part.shape != (length,) or lengths[0] != vocab_size:
                return f"{name}: expected ({length},) of {vocab_size} tokens, got {tuple(part.shape)} of {lengths[0]}"
        if keys.dtype != torch.int64 or not logs.is_floating_point() or not backoffs.is_floating_point():
            return f"expected integers and floats, got {keys.dtype}, {logs.dtype} and {backoffs.dtype}"
        if not (logs.isfinite().all() and (logs <= 0).all() and backoffs.isfinite().all()):
            return "expected finite logarithms, of probabilities up to 1"
        for contexts, level in zip(lengths[:-1], keys.split(lengths[1:]), strict=True):
            if len(level) and not (level[0] >= 0 and level[-1] < contexts * vocab_size and (level.diff() > 0).all()):
                return "keys: expected ascending ones of n-grams that begin with others"
        return None

    def extra_repr(self) -> str:
        return f"order={self.order}, n-grams={self.sizes.tolist()}"


def _joined(levels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(levels) if levels else np.zeros(0)


def _places(keys: Tensor, context: Tensor, tokens: Tensor, vocab_size: int) -> Tensor:
    """Where the n-grams of contexts and tokens are, -1 where they are not."""
    if not len(keys):
        return torch.full_like(tokens, -1)
    wanted = context * vocab_size + tokens
    places = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return torch.where((context >= 0) & (keys[places] == wanted), places, -1)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """float64, the values at the places; 0 where a place is -1."""
    if not len(values):
        return torch.zeros(places.shape, dtype=torch.float64, device=places.device)
    return torch.where(places >= 0, values[places.clamp(min=0)].double(), 0)
