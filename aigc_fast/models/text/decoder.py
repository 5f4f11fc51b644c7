"""What GPT-2 and Llama share: how they generate, on the native engine or in plain PyTorch, and how they score text."""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aigc_fast.errors import UserError
from aigc_fast.models.base import check_counts, evaluating
from aigc_fast.models.text.base import NetworkTextModel, before_stop
from aigc_fast.models.text.decoding import Plan, Sequences, beam_search
from aigc_fast.models.text.generating import Decoding, Streamer, Way
from aigc_fast.models.text.layers import Past
from aigc_fast.models.text.options import Options, Processor, options_of
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.subwords import BPETokenizer
from aigc_fast.models.text.tokenizers import Tokenizer
from aigc_fast.ops.decode.reading import ACTIVATIONS
from aigc_fast.runtime.weights import check_weights

# Logits that are made in one call to score text, about; and how far is looked back for it, at most.
_SCORED_AT_ONCE, _LONGEST_WINDOW = 1 << 25, 1024


class DecoderModel(Decoding, NetworkTextModel):
    """A decoder-only transformer.

    Args:
        tokenizer: a `Tokenizer` or its `config`.
        context: number of positions, the longest sequence or what the model is meant for.
        vocab_size: size of the embedding; None for the tokenizer's.
        tied: whether the head shares the embedding's weight.
        activation: of the feed-forward layer, by transformers' name.
        dropout: the share of elements that training drops, in [0, 1).
        generation: defaults for the options of `generate`, as in a generation_config.json.
        **config: the subclass's other constructor arguments.

    Attributes:
        vocab_size: size of the embedding.
        context: as given.
        head: the linear layer that computes the logits.

    Raises:
        ValueError: for sizes that are not positive or do not match, or unknown settings.
    """

    family = "transformers"
    trainer = "aigc_fast.training.decoders:DecoderTrainer"
    data_defaults = MappingProxyType({"tokenizer": BPETokenizer.kind})
    # Whether there are no positions beyond the context.
    is_bounded: ClassVar[bool]

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        hidden: int,
        num_layers: int,
        num_heads: int,
        context: int,
        vocab_size: int | None,
        tied: bool,
        activation: str,
        dropout: float,
        generation: Mapping[str, Any] | None,
        num_classes: None,
        **config: Any,
    ) -> None:
        check_counts(hidden=hidden, num_layers=num_layers, num_heads=num_heads, context=context)
        if context < 2:
            raise ValueError(f"context={context}: expected at least 2 positions")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        for name, share in {"dropout": dropout, **config}.items():
            if name.endswith("dropout") and share is not None and not 0 <= share < 1:
                raise ValueError(f"{name}={share}: expected at least 0 and below 1")
        super().__init__(
            tokenizer=tokenizer,
            hidden=hidden,
            num_layers=num_layers,
            num_heads=num_heads,
            context=context,
            vocab_size=vocab_size,
            tied=tied,
            activation=activation,
            dropout=dropout,
            generation=None if generation is None else dict(generation),
            num_classes=num_classes,
            **config,
        )
        self.vocab_size, self.context, self.tied = vocab_size or self.tokenizer.vocab_size, context, tied
        check_counts(vocab_size=self.vocab_size)
        self.register_load_state_dict_post_hook(_tie_again)

    @property
    @abstractmethod
    def embedding(self) -> nn.Embedding:
        """The embedding of the tokens."""

    @property
    @abstractmethod
    def head(self) -> nn.Linear:
        """The linear layer that computes the logits."""

    def tie(self) -> None:
        """Shares the embedding's weight with the head, if the model is built with tied weights."""
        if self.tied:
            self.head.weight = self.embedding.weight

    @abstractmethod
    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, past: Past | None = None, keep: int | None = None
    ) -> Tensor:
        """The logits of the token that follows each token.

        Args:
            tokens: int64 (N, T).
            positions: int64, broadcastable to (N, T); by default those that follow `past`.
            past: the keys and values of earlier tokens, to which these tokens' are appended; None to start anew.
            keep: for how many of the last tokens to compute logits; None for all.

        Returns:
            (N, T, vocab_size), or (N, keep, vocab_size).
        """

    def positions_after(self, tokens: Tensor, past: Past | None) -> Tensor:
        """The positions (1, T) of tokens that follow those in `past`."""
        before = 0 if past is None else past.length
        return torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]

    def generate(
        self,
        inputs: str | Tensor = "",
        *,
        length: int | None = None,
        stop: str | Sequence[str] | None = None,
        attention_mask: Tensor | None = None,
        logits_processor: Sequence[Processor] = (),
        streamer: Streamer | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> str | list[str] | Tensor:
        """Generates in eval mode and without gradients: with transformers' options or, given `length`, with those of
        `TextModel.generate`.

        Args:
            inputs: a text, or int64 ids (N, T).
            length: the greatest number of tokens. If given, `inputs` is a text, only what follows it is returned, and
                the other arguments are those of `stream`. Otherwise they are the following.
            stop: see `TextModel.generate`; only with `length`.
            attention_mask: (N, T), 0 for left padding; by default, tokens equal to `pad_token_id` are padding, unless
                that is an end token.
            logits_processor: callables that take ids and scores and return scores; applied after the options and before
                temperature, top-k, top-p and min-p.
            streamer: receives ids as they are generated; not with beams.
            generator: for sampling; None for PyTorch's default one, with which `torch.manual_seed` gives transformers'
                ids.
            seed: for sampling, in place of a generator.
            **options: see `Options`.

        Returns:
            For a text, the text with its continuation, or a list if `num_return_sequences` is above 1; for ids, ids
            (N, length) including the prompt's; with `length`, see `TextModel.generate`.

        Raises:
            UserError: for options that are unknown, out of range or contradict each other, a prompt that is empty or
                too long, or ids out of range.
        """
        if seed is not None:
            generator = torch.Generator(generator.device if generator else "cpu").manual_seed(seed)
        if length is not None:
            return "".join(self.stream(inputs, length=length, stop=stop, generator=generator, **options))
        if stop is not None:
            raise UserError("stop: expected only with length")
        is_text = isinstance(inputs, str)
        ids = self._ids_of_text(inputs) if is_text else self._checked(inputs)
        plan = self._plan(ids, attention_mask, logits_processor, generator, options)
        with evaluating(self):
            found = self._decoded(plan, streamer, lambda: self._begin(plan))
        if not is_text:
            return found
        texts = [self.tokenizer.decode(row) for row in found.tolist()]
        return texts if plan.options.num_return_sequences > 1 else texts[0]

    def _ids_of_text(self, text: str) -> Tensor:
        ids = self.tokenizer.encode_prompt(text) or [self.tokenizer.start]
        return torch.tensor([ids], device=self.device)

    def _defaults(self) -> dict[str, Any]:
        return {"eos_token_id": self.tokenizer.boundary, **(self.config["generation"] or {})}

    def _plan(
        self,
        ids: Tensor,
        mask: Tensor | None,
        given: Sequence[Processor],
        generator: torch.Generator | None,
        options: Mapping[str, Any],
    ) -> Plan:
        known = options_of(self._defaults(), options)
        if known.prompt_lookup_num_tokens is not None and ids.shape[0] > 1:
            raise UserError(
                f"prompt_lookup_num_tokens={known.prompt_lookup_num_tokens}: expected one prompt, got {ids.shape[0]}"
            )
        self._check_options(known.ends, known.padding)
        longest = known.longest(ids.shape[1], self.context)
        if self.is_bounded and longest > self.context:
            raise UserError(
                f"inputs: {ids.shape[1]} tokens, and {longest - ids.shape[1]} to come, are more than the "
                f"{self.context} that {self.name} has positions for: expected a shorter prompt, or a smaller max_length"
            )
        visible = self._visible(ids, mask, known.pad_token_id, known.ends)
        copies = known.num_beams if known.num_beams > 1 else known.num_return_sequences
        if copies > 1:
            ids = ids.repeat_interleave(copies, 0)
            visible = None if visible is None else visible.repeat_interleave(copies, 0)
        return Plan(ids, visible, longest, known, tuple(given), generator)

    def _visible(self, ids: Tensor, mask: Tensor | None, padding: int | None, ends: Sequence[int]) -> Tensor | None:
        if mask is None:
            if padding is None or padding in ends:
                return None
            mask = ids != padding
        elif not isinstance(mask, Tensor) or mask.shape != ids.shape:
            what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UserError(f"attention_mask: expected {tuple(ids.shape)}, as inputs have, got {what}")
        visible = (mask != 0).to(ids.device)
        if not visible[:, -1].all():
            raise UserError("attention_mask: hides the last token of a prompt: expected padding at the left")
        return None if visible.all() else visible

    def pack(self, release: Callable[[Tensor], None] | None = None) -> None:
        """Packs the weights for the engine, where it runs, now rather than at the first call of `generate`.

        Args:
            release: called with each parameter that has been read, any number of times: its memory may be freed, if it
                can be read again.
        """
        self._engine_or_none(1, release)

    def _begin(self, plan: Plan, weights: str | None = None) -> Sequences:
        """New sequences, on the engine where it runs."""
        engine, rows = self._engine(plan, weights), plan.ids.shape[0]
        return Past(self, rows) if engine is None else engine.begin(rows)

    def way_of(
        self,
        inputs: str | Tensor = "",
        *,
        attention_mask: Tensor | None = None,
        logits_processor: Sequence[Processor] = (),
        streamer: Streamer | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> Way:
        """How `generate` would run with these arguments; nothing is computed.

        Raises:
            UserError: as `generate`.
        """
        ids = self._ids_of_text(inputs) if isinstance(inputs, str) else self._checked(inputs)
        plan = self._plan(ids, attention_mask, logits_processor, None, options)
        with evaluating(self):
            return self._way(plan)[1]

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
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        no_repeat_ngram_size: int | None = None,
        num_beams: int = 1,
        weights: str | None = None,
    ) -> Iterator[str]:
        """See `TextModel.stream`. Text may be longer than the context: when it is full, its latter half is kept.

        Args:
            prompt, length, temperature, top_k, top_p, stop, generator: see `TextModel.generate`.
            min_p, repetition_penalty, no_repeat_ngram_size, num_beams: see `Options`. With several beams, the text is
                the most probable one they find, comes in one piece and ends at the end of the context at the latest.
            weights: the format in which the engine keeps the weights for this call; None for the attribute `weights`.
        """
        check_weights(weights)
        sampling = Sampling(length, temperature, top_k, top_p, stop)
        if not isinstance(prompt, str):
            raise UserError(f"inputs is {type(prompt).__name__}: expected a text, where there is a length")
        if num_beams != 1 and (top_k, top_p, min_p, temperature) != (None, None, None, 1.0):
            raise UserError(
                f"num_beams={num_beams}: beam search does not sample: expected no temperature, top_k, top_p or min_p"
            )
        options = {
            "do_sample": temperature > 0 and num_beams == 1,
            "temperature": temperature or 1.0,
            "top_k": top_k or 0,
            "top_p": top_p or 1.0,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty or 1.0,
            "no_repeat_ngram_size": no_repeat_ngram_size or 0,
            "num_beams": num_beams,
            "eos_token_id": [self.tokenizer.boundary, *self._other_ends()],
            "suppress_tokens": None if self.tokenizer.unknown is None else [self.tokenizer.unknown],
        }
        options_of({}, options)
        context = [self.tokenizer.start, *self.tokenizer.encode(prompt)]
        if num_beams > 1 and len(context) >= self.context:
            raise UserError(f"prompt: {len(context)} tokens leave no room in the {self.context} of {self.name}")
        return before_stop(
            self._pieces(prompt, context, _Drawing(sampling, options, weights), generator), sampling.stop
        )

    def _other_ends(self) -> list[int]:
        ends = Options(eos_token_id=self._defaults()["eos_token_id"]).ends
        return [end for end in ends if end != self.tokenizer.boundary]

    def _draw(self, context: list[int], drawing: _Drawing, generator: torch.Generator | None) -> Iterator[list[int]]:
        """See `TextModel._draw`."""
        boundary, ends = self.tokenizer.boundary, drawing.options["eos_token_id"]
        steps = self._tokens(context, drawing, generator)
        for tokens in self._timed(steps, time.perf_counter()):
            yield [boundary if token in ends else token for token in tokens.tolist()]
        # Beams end where the context does.
        yield [boundary]

    def _tokens(self, context: list[int], drawing: _Drawing, generator: torch.Generator | None) -> Iterator[Tensor]:
        if drawing.options["num_beams"] > 1:
            yield self._best(context, drawing)
            return
        while True:
            context = context[-(self.context // 2) :] if len(context) >= self.context else context
            ids = torch.tensor([context], device=self.device)
            options = drawing.options | {"max_length": self.context}
            plan = Plan(ids, None, self.context, options_of({}, options), (), generator)
            for tokens in self._steps(self._begin(plan, drawing.weights), plan):
                context = [*context, int(tokens)]
                yield tokens

    def _best(self, context: list[int], drawing: _Drawing) -> Tensor:
        room = self.context - len(context)
        options = options_of({}, drawing.options | {"max_new_tokens": min(drawing.length, room)})
        ids = torch.tensor([context] * options.num_beams, device=self.device)
        plan = Plan(ids, None, options.longest(len(context), self.context), options)
        return beam_search(self._begin(plan, drawing.weights), plan)[0, len(context) :]

    def foreseen(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See `NetworkTextModel.foreseen`; in documents longer than the context, or than 1024 tokens, each token is
        predicted from at least half as many."""
        self.check_tokens(tokens)
        boundary = self.tokenizer.boundary
        ends = [*((tokens == boundary).nonzero()[:, 0] + 1).tolist(), len(tokens)]
        windows, first = [], 0
        for end in dict.fromkeys(ends):
            windows += self._windows(first, end)
            first = end
        windows.sort(key=lambda window: window[2] - window[0])
        while windows:
            longest = windows[-1][2] - windows[-1][0]
            count = max(1, _SCORED_AT_ONCE // (longest * self.vocab_size))
            yield self._foreseen_in(tokens, windows[-count:])
            del windows[-count:]

    def _windows(self, first: int, end: int) -> list[tuple[int, int, int, bool]]:
        """Parts of a document: where each begins, from where on its tokens are scored, its end, and whether what
        begins it is the document's beginning."""
        if end <= first:
            return []
        most = min(self.context, _LONGEST_WINDOW)
        found = [(first, first, min(end, first + most), True)]
        while found[-1][2] < end:
            scored = found[-1][2]
            begin = scored - most // 2
            found.append((begin, scored, min(end, begin + most), False))
        return found

    def _foreseen_in(self, tokens: Tensor, windows: Sequence[tuple[int, int, int, bool]]) -> tuple[Tensor, Tensor]:
        longest = max(end - begin for begin, _, end, _ in windows)
        inputs = tokens.new_zeros(len(windows), longest)
        for row, (begin, _, end, is_first) in zip(inputs, windows, strict=True):
            row[0] = self.tokenizer.start if is_first else tokens[begin - 1]
            row[1 : end - begin] = tokens[begin : end - 1]
        logits = self._all_logits(inputs.to(self.device))
        scored = [(row, begin, first, end) for row, (begin, first, end, _) in enumerate(windows)]
        places = torch.cat([torch.arange(first, end) for _, _, first, end in scored])
        rows = torch.cat([logits[row, first - begin : end - begin] for row, begin, first, end in scored])
        return places.to(tokens.device), rows.log_softmax(-1)

    def _all_logits(self, tokens: Tensor) -> Tensor:
        """(N, T, vocab_size), of the engine where it keeps weights otherwise and nobody wants gradients."""
        if self.weights is None or torch.is_grad_enabled():
            return self(tokens)
        if (engine := self._engine_or_none(tokens.shape[1])) is None:
            return self(tokens)
        state = engine.begin(tokens.shape[0])
        positions = self.positions_after(tokens, None).expand_as(tokens)
        return state.extend(tokens, positions, None, tokens.shape[1])

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: str | None = None,
        dtype: torch.dtype | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> DecoderModel:
        """Loads a Hugging Face folder or a GGUF file, in eval mode on the CPU; no code in it is executed.

        Args:
            path: the folder, with config.json, safetensors and the tokenizer's files; or the file.
            weights: the format in which the engine keeps the weights: "fp32", "bf16", "int8" or "int4". They are packed
                right away; parameters stay in safetensors files of the same dtype and take no memory of the process
                until they are changed, so the files must not be overwritten in place meanwhile. None for as they are,
                packed at the first call of `generate`.
            dtype: of the parameters; None for the file's, or float32 for a GGUF file's.
            tokenizer: in place of the one in the folder or file.

        Raises:
            UserError: for files that are missing, truncated, pickled or not what they claim to be, a model of another
                kind, or unknown settings.
        """
        from aigc_fast.models.text.pretrained import read_pretrained

        check_weights(weights)
        return read_pretrained(path, cls, dtype, tokenizer, weights)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes a Hugging Face folder that transformers can load, whole or not at all.

        Args:
            path: the folder; what this method wrote there before is replaced.

        Raises:
            UserError: when it can't be written, or holds files of others.
        """
        from aigc_fast.models.text.pretrained import write_pretrained

        write_pretrained(self, path)


@dataclass(frozen=True)
class _Drawing:
    """How text is drawn: the settings that all models share, and the options that come of them."""

    sampling: Sampling
    options: Mapping[str, Any]
    weights: str | None

    @property
    def length(self) -> int:
        return self.sampling.length


def _tie_again(model: DecoderModel, keys: Any) -> None:
    model.tie()
