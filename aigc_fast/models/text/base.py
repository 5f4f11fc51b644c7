"""What every model of text has: a tokenizer, text drawn at once or as it comes, and how probable text is."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.models.base import Model, evaluating
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.tokenizers import Tokenizer, tokenizer_from

# What a tokenizer of words needs is longer; an alphabet seldom is.
_LONG = 1000


class TokenModel(Model):
    """A model that reads or writes text by a tokenizer, which is saved with it.

    Args:
        tokenizer: a `Tokenizer` or its `config`, which is what files keep.
        num_classes: None; text has no classes.
        **config: the subclass's other constructor arguments, JSON-able.

    Attributes:
        tokenizer: of its text.

    Raises:
        ValueError: for classes, or a tokenizer that is none.
    """

    def __init__(self, *, tokenizer: Tokenizer | Mapping[str, Any], num_classes: None = None, **config: Any) -> None:
        if num_classes is not None:
            raise ValueError(f"num_classes={num_classes}: expected None, text has no classes")
        known = tokenizer_from(tokenizer)
        super().__init__(tokenizer=known.config(), **config)
        self.tokenizer = known

    @property
    def brief_config(self) -> dict[str, Any]:
        """`config`, for the records of what was generated: the SHA-256 of a long text stands for it."""
        tokenizer = {
            name: hashlib.sha256(value.encode()).hexdigest() if isinstance(value, str) and len(value) > _LONG else value
            for name, value in self.config["tokenizer"].items()
        }
        return {**self.config, "tokenizer": tokenizer}


class TextModel(TokenModel):
    """A model of the probability of each token given those before it, from which it samples text; see `TokenModel`.

    Attributes:
        weights: their format for sampling and scoring, see `keep_weights`; None for as they are.
    """

    medium = "aigc_fast.media.text:TEXT"
    weights: str | None = None

    def generate(
        self,
        prompt: str = "",
        *,
        length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> str:
        """Samples text that follows a prompt, in eval mode and without gradients.

        Args:
            prompt: the beginning of a document, which is not returned; by default the text starts a document.
            length: the greatest number of tokens (characters or bytes, depending on the tokenizer). The text is shorter
                if the document ends, or at a `stop`.
            temperature: above 1 for more variety, below 1 for less; 0 always takes the most probable token.
            top_k: sample only among this many of the most probable tokens, and any that tie with the last of them.
            top_p: sample only among the fewest most probable tokens whose probabilities add up to this.
            stop: a string, or several: the text ends before the first occurrence of any.
            generator: makes the draw reproducible; None uses PyTorch's default generator.

        Returns:
            The text.

        Raises:
            UserError: for characters of the prompt that the tokenizer does not know, or a setting out of range.
        """
        return "".join(
            self.stream(
                prompt,
                length=length,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                stop=stop,
                generator=generator,
            )
        )

    def stream(
        self,
        prompt: str = "",
        *,
        length: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[str]:
        """`generate`, piece by piece as the text comes; arguments, text and errors as there."""
        sampling = Sampling(length, temperature, top_k, top_p, stop)
        context = [self.tokenizer.start, *self.tokenizer.encode(prompt)]
        return before_stop(self._pieces(prompt, context, sampling, generator), sampling.stop)

    def _pieces(
        self, prompt: str, context: list[int], sampling: Sampling, generator: torch.Generator | None
    ) -> Iterator[str]:
        decoder, drawn = self.tokenizer.decoder(prompt), self._draw(context, sampling, generator)
        left = sampling.length
        while left > 0:
            # Between two pieces the caller's own modes hold.
            with evaluating(self):
                tokens = next(drawn)[:left]
            left -= len(tokens)
            ended = self.tokenizer.boundary in tokens
            if ended:
                tokens = tokens[: tokens.index(self.tokenizer.boundary)]
            if piece := "".join(map(decoder.push, tokens)):
                yield piece
            if ended:
                return

    def keep_weights(self, weights: str | None) -> None:
        """Sets the format of the weights for sampling and scoring in float32; the parameters themselves do not change.

        Args:
            weights: "fp32", "bf16", "int8" or "int4"; None as they are.

        Raises:
            UserError: if the model can only use its weights as they are.
            ValueError: for another name.
        """
        raise UserError(f"weights={weights!r}: {self.name} uses its weights as they are")

    @abstractmethod
    def _draw(self, context: list[int], sampling: Sampling, generator: torch.Generator | None) -> Iterator[list[int]]:
        """Draws tokens, at least `sampling.length` in all, a few at a time; those after a boundary are not looked at.

        Args:
            context: the tokens before, the first of which is a boundary.
            sampling: how; its `stop` is not the model's to see to.
            generator: of the draw; None for PyTorch's default one.

        Yields:
            One token or more, never the tokenizer's `unknown`.
        """

    @abstractmethod
    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """The log-probability of each token given those before it, the first after a boundary.

        Args:
            tokens: int64 (T,), of one document, or of several with a boundary between two.

        Returns:
            (T,) natural logarithms.

        Raises:
            ValueError: for another shape or dtype, or tokens out of range.
        """

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises ValueError where `tokens` is not int64 (T,), or some are out of range."""
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.dim() != 1:
            what = f"{tokens.dtype} {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"tokens: expected an int64 tensor (T,), got {what}")
        lowest, highest = (int(tokens.min()), int(tokens.max())) if len(tokens) else (0, 0)
        if lowest < 0 or highest >= self.tokenizer.vocab_size:
            raise ValueError(f"tokens: expected 0 to {self.tokenizer.vocab_size - 1}, got {lowest} to {highest}")

    def score(self, text: str, *, end: bool = True) -> float:
        """The natural logarithm of the probability of a document, in eval mode and without gradients.

        Args:
            text: the document; unknown characters are scored as the tokenizer's `unknown`.
            end: whether the document ends there; otherwise its probability as the beginning of one.

        Raises:
            UserError: for unknown characters, if the tokenizer has no token for them.
        """
        tokens = self.tokenizer.encode_array(text, strict=False)
        return self._score(_joined([tokens, [self.tokenizer.boundary] * end]))

    def score_all(self, texts: Sequence[str]) -> float:
        """The sum of the `score` of documents, which a model may read side by side.

        Raises:
            UserError: as `score`.
        """
        return self._score(self.tokens_of(texts))

    def tokens_of(self, texts: Sequence[str]) -> Tensor:
        """int64 (T,), documents one after the other, each with a boundary behind it.

        Raises:
            UserError: as `score`.
        """
        documents = [self.tokenizer.encode_array(text, strict=False) for text in texts]
        return _joined([part for document in documents for part in (document, [self.tokenizer.boundary])])

    def _score(self, tokens: Tensor) -> float:
        with evaluating(self):
            found = self.log_probabilities(tokens.to(self.device))
        return float(found.double().sum())


def _joined(parts: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))


class NetworkTextModel(TextModel):
    """A model of text that finds the probabilities of all tokens at once, from weights that may be kept otherwise."""

    @abstractmethod
    def foreseen(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What may stand where each token does, after those before it, before the first of which stands a boundary.

        Args:
            tokens: int64 (T,), of one document, or of several with a boundary between two.

        Yields:
            int64 (n,), places of some of the tokens, each once in all; and (n, vocab_size), the natural logarithms of
            the probabilities there.

        Raises:
            ValueError: for another shape or dtype, or tokens out of range.
        """

    def log_probabilities(self, tokens: Tensor) -> Tensor:
        """See `TextModel.log_probabilities`."""
        found = torch.zeros(len(tokens), dtype=self.dtype, device=tokens.device)
        for places, logarithms in self.foreseen(tokens):
            wanted = tokens[places, None].to(logarithms.device)
            found[places] = logarithms.gather(1, wanted)[:, 0].to(found)
        return found


def before_stop(pieces: Iterator[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces of a text up to the first occurrence of a string; what may be the beginning of one waits."""
    held = ""
    for piece in pieces:
        held += piece
        found = [place for place in (held.find(one) for one in stop) if place >= 0]
        if found:
            held = held[: min(found)]
            break
        waiting = max((_overlap(held, one) for one in stop), default=0)
        if len(held) > waiting:
            yield held[: len(held) - waiting]
            held = held[len(held) - waiting :]
    if held:
        yield held


def _overlap(text: str, one: str) -> int:
    """How many of the last characters of a text are the first of a string, not all of it."""
    lengths = range(min(len(text), len(one) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(one[:length])), 0)
