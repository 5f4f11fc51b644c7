"""The encoder-decoder Transformer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF
from torch import Tensor, nn

from aigc_fast import functional
from aigc_fast.checks import check_pairs
from aigc_fast.errors import UserError
from aigc_fast.models.base import check_counts, evaluating
from aigc_fast.models.text.decoding import Plan, Sequences
from aigc_fast.models.text.generating import Decoding, Streamer
from aigc_fast.models.text.options import Options, Processor, options_of
from aigc_fast.models.text.packed import Lengths
from aigc_fast.models.text.stacks import ACTIVATIONS, Sizes, Stack, Stacks, norm_of, packed, unpacked
from aigc_fast.models.text.tokenizers import Tokenizer
from aigc_fast.ops.decode.engine import Engine
from aigc_fast.ops.decode.reading import ACTIVATIONS as CODES
from aigc_fast.ops.decode.reading import Refused, exactly, parameter
from aigc_fast.ops.decode.spec import Linear, Spec
from aigc_fast.runtime.backends import backend
from aigc_fast.runtime.rows import laid_out

# Sources that are answered in one call, and tokens that are scored in one.
_ANSWERED_AT_ONCE, _SCORED_AT_ONCE = 64, 4096
# Steps for which there is room at once in the keys and values of what is being decoded.
_ROOM = 32


@dataclass(frozen=True)
class Pairs:
    """Tokens of several pairs, packed one after the other.

    Attributes:
        sources: int64 (S,), each with the end behind it.
        of_sources: their lengths.
        inputs: int64 (T,), the targets, each with the start before it.
        of_inputs: their lengths.
        answers: int64 (T,), what follows each of the inputs: the targets, each with the end behind it.
    """

    sources: Tensor
    of_sources: Lengths
    inputs: Tensor
    of_inputs: Lengths
    answers: Tensor


def sinusoids(positions: int, size: int) -> Tensor:
    """(positions, size): sines of falling frequencies at even places, cosines at odd ones (Vaswani et al., §3.5)."""
    frequencies = torch.exp(torch.arange(0, size, 2, dtype=torch.float64) * (-math.log(10000.0) / size))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], 2).flatten(1)[:, :size].float()


class Seq2SeqTransformer(Decoding):
    """The encoder-decoder Transformer (Vaswani et al., "Attention is all you need", 2017): maps a source text to a
    target text, as in translation.

    Position encodings are sinusoidal; encoder, decoder and head share one embedding, scaled by √d_model where it is
    looked up. Padding costs no work: sequences are packed one after the other.

    Args:
        tokenizer: a `Tokenizer` or its `config`, of sources and targets.
        d_model: size of the hidden states.
        nhead: number of attention heads, a divisor of `d_model`.
        num_encoder_layers, num_decoder_layers: number of layers of each.
        dim_feedforward: size of the feed-forward layers.
        dropout: the share of elements that training drops, in [0, 1): of the embedding with its position encoding, the
            output of each sublayer, the feed-forward layer and attention weights.
        activation: of the feed-forward layers, "relu" or "gelu".
        layer_norm_eps: added to the variances in the norms.
        bias: whether linear layers and norms have biases.
        norm_first: whether norms come before the sublayers (pre-norm), rather than after them as in the paper.
        final_norm: whether a norm follows each stack, as in `torch.nn.Transformer`; None: if `norm_first`.
        max_positions: the greatest number of tokens of a source or target, with its end.
        vocab_size: size of the embedding; None for the tokenizer's.
        generation: defaults for the options of `generate`.
        num_classes: must be None; text has no classes.

    Attributes:
        transformer: encoder and decoder, with the `state_dict` of a `torch.nn.Transformer`.
        vocab_size: size of the embedding.
        max_positions: the greatest number of tokens of a source or target, with its end.

    Raises:
        ValueError: for sizes that are not positive or do not match, or unknown settings.

    Example:
        >>> model = Seq2SeqTransformer(tokenizer=ByteTokenizer(), norm_first=True)
        >>> logits = model(src, tgt, src_key_padding_mask=src == 256)
        >>> model.generate(["to be", "or not"], num_beams=4, length_penalty=0.6)
    """

    name = "seq2seq"
    family = "encoder-decoders"
    medium = "aigc_fast.media.pairs:PAIRS"
    trainer = "aigc_fast.training.seq2seq:Seq2SeqTrainer"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 4,
        num_decoder_layers: int = 4,
        dim_feedforward: int = 1024,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        bias: bool = True,
        norm_first: bool = False,
        final_norm: bool | None = None,
        max_positions: int = 256,
        vocab_size: int | None = None,
        generation: Mapping[str, Any] | None = None,
        num_classes: None = None,
    ) -> None:
        sizes = {
            "d_model": d_model,
            "nhead": nhead,
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
            "dim_feedforward": dim_feedforward,
            "max_positions": max_positions,
        }
        check_counts(**sizes)
        if d_model % nhead:
            raise ValueError(f"nhead={nhead}: expected a divisor of d_model={d_model}")
        if max_positions < 2:
            raise ValueError(f"max_positions={max_positions}: expected at least 2, of a token and the end")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: expected at least 0 and below 1")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: expected one of {', '.join(ACTIVATIONS)}")
        super().__init__(
            tokenizer=tokenizer,
            num_classes=num_classes,
            **sizes,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            bias=bias,
            norm_first=norm_first,
            final_norm=final_norm,
            vocab_size=vocab_size,
            generation=None if generation is None else dict(generation),
        )
        self.vocab_size, self.max_positions = vocab_size or self.tokenizer.vocab_size, max_positions
        check_counts(vocab_size=self.vocab_size)
        self.dropped, self.scale = dropout, math.sqrt(d_model)
        self.embedding = nn.Embedding(self.vocab_size, d_model)
        self.transformer = Stacks(
            Sizes(d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, bias, norm_first),
            num_encoder_layers,
            num_decoder_layers,
            norm_first if final_norm is None else final_norm,
        )
        self.register_buffer("positions", sinusoids(max_positions, d_model))
        if not self.embedding.weight.is_meta:
            nn.init.normal_(self.embedding.weight, std=d_model**-0.5)

    def load_transformer(self, module: nn.Transformer) -> None:
        """Copies the weights of the encoder and the decoder of a `torch.nn.Transformer`.

        Args:
            module: of the same sizes, norm order and activation; with `final_norm=True` the hidden states are the same.

        Raises:
            ValueError: if its architecture is not that of `transformer`.
        """
        if type(module) is not nn.Transformer:
            raise ValueError(f"module is {type(module).__name__}: expected torch.nn.Transformer")
        for ours, theirs in ((self.transformer.encoder, module.encoder), (self.transformer.decoder, module.decoder)):
            _check_alike(ours.layers[0], theirs.layers[0])
        try:
            self.transformer.load_state_dict(module.state_dict())
        except RuntimeError as error:
            raise ValueError(f"module: {' '.join(str(error).split())}") from None

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        *,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """The logits of the token that follows each target token.

        Args:
            src: int64 (N, S), sources.
            tgt: int64 (N, T), targets.
            src_key_padding_mask: bool (N, S), True for padding, at any position; None for no padding.
            tgt_key_padding_mask: bool (N, T), likewise.

        Returns:
            (N, T, vocab_size); zero at padding.
        """
        sources, of_sources = packed(src, src_key_padding_mask)
        inputs, of_inputs = packed(tgt, tgt_key_padding_mask)
        found = self.logits(self.hidden(sources, of_sources, inputs, of_inputs))
        return unpacked(found, tgt, tgt_key_padding_mask)

    def hidden(self, sources: Tensor, of_sources: Lengths, inputs: Tensor, of_inputs: Lengths) -> Tensor:
        """The decoder's output (T, d_model) for packed sources (S,) and packed inputs (T,)."""
        memory = self.encode(sources, of_sources)
        with laid_out(of_inputs.rows):
            x = self.embedded(inputs, of_inputs.positions)
            return self.transformer.decoder(x, of_inputs, memory, of_sources)

    def encode(self, sources: Tensor, of_sources: Lengths) -> Tensor:
        """The encoder's output (S, d_model) for packed sources (S,)."""
        with laid_out(of_sources.rows):
            return self.transformer.encoder(self.embedded(sources, of_sources.positions), of_sources)

    def embedded(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Embeddings (..., d_model) of tokens, with their position encodings."""
        if tokens.numel() and int(positions.max()) >= self.max_positions:
            raise ValueError(
                f"{int(positions.max()) + 1} tokens in a row: expected at most max_positions={self.max_positions}"
            )
        x = self.embedding(tokens) * self.scale + TF.embedding(positions, self.positions)
        return functional.dropout(x, self.dropped, self.training) if self.training and self.dropped else x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab_size) for hidden states (..., d_model)."""
        return functional.linear(hidden, self.embedding.weight)

    def source_of(self, text: str, *, strict: bool = True) -> np.ndarray:
        """The tokens of a source, int64, with the end behind them; `strict` as for `Tokenizer.encode_array`."""
        return np.append(self.tokenizer.encode_array(text, strict=strict), self.tokenizer.boundary)

    def target_of(self, text: str) -> np.ndarray:
        """The tokens of a target, int64, between the start and the end."""
        tokens = self.tokenizer.encode_array(text, strict=False)
        return np.concatenate([[self.tokenizer.start], tokens, [self.tokenizer.boundary]])

    def pairs(self, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Pairs:
        """Several pairs, of `source_of` and `target_of`, as the network takes them."""
        inputs, of_inputs = Lengths.of([target[:-1] for target in targets], self.device)
        answers, _ = Lengths.of([target[1:] for target in targets], self.device)
        return Pairs(*Lengths.of(sources, self.device), inputs, of_inputs, answers)

    def has_room_for(self, source: np.ndarray, target: np.ndarray) -> bool:
        """Whether there are positions for a pair, of `source_of` and `target_of`."""
        return max(len(source), len(target) - 1) <= self.max_positions

    def score(self, source: str, target: str) -> float:
        """The natural logarithm of the probability of a target, with its end, after a source.

        In eval mode and without gradients.

        Raises:
            UserError: if there are no positions for them.
        """
        return self.score_all([(source, target)])[0]

    def score_all(self, pairs: Sequence[tuple[str, str]]) -> tuple[float, int]:
        """The logarithm of the probability of several pairs' targets together, and how many tokens these have.

        In eval mode and without gradients.

        Raises:
            TypeError: for what is no sequence of pairs of strings.
            UserError: if there are no positions for a pair.
        """
        check_pairs("pairs", pairs)
        sources = [self.source_of(source, strict=False) for source, _ in pairs]
        targets = [self.target_of(target) for _, target in pairs]
        if not all(map(self.has_room_for, sources, targets)):
            raise UserError(f"pairs: expected at most {self.max_positions} tokens in each source and target")
        total, count = 0.0, sum(len(target) - 1 for target in targets)
        with evaluating(self):
            for chosen in _in_parts(sources, targets):
                batch = self.pairs([sources[place] for place in chosen], [targets[place] for place in chosen])
                hidden = self.hidden(batch.sources, batch.of_sources, batch.inputs, batch.of_inputs)
                losses = TF.cross_entropy(self.logits(hidden), batch.answers, reduction="none")
                total -= float(losses.double().sum())
        return total, count

    def generate(
        self,
        inputs: str | Sequence[str] | Tensor,
        *,
        attention_mask: Tensor | None = None,
        logits_processor: Sequence[Processor] = (),
        streamer: Streamer | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> str | list[str] | Tensor:
        """Generates answers to sources, with transformers' options, in eval mode and without gradients.

        Args:
            inputs: a source, several of them, or int64 ids (N, S), each with its end.
            attention_mask: (N, S), 0 for padding, at any position; by default, tokens equal to `pad_token_id` are
                padding, unless that is an end token.
            logits_processor: callables that take ids and scores and return scores; applied after the options and before
                temperature, top-k, top-p and min-p.
            streamer: receives ids as they are generated; not with beams, nor with several texts.
            generator: for sampling; None for PyTorch's default one.
            seed: for sampling, in place of a generator.
            **options: see `Options`; `max_length`, including the start token, is `max_positions` by default.

        Returns:
            For a text, its answer, or a list of `num_return_sequences` answers; for several texts, a list of all; for
            ids, ids (N * num_return_sequences, length) that begin with the start token.

        Raises:
            UserError: for options that are unknown, out of range or contradict each other, a source that is too long,
                or ids out of range.
        """
        if seed is not None:
            generator = torch.Generator(generator.device if generator else "cpu").manual_seed(seed)
        known = options_of(self._defaults(), options)
        self._check_options(known.ends, known.padding)
        how = known, tuple(logits_processor), generator, streamer
        if isinstance(inputs, Tensor):
            ids = self._checked(inputs)
            tokens, of_sources = packed(ids, self._padding(ids, attention_mask, known))
            return self._answered(tokens, of_sources, *how)
        if attention_mask is not None:
            raise UserError("attention_mask: expected only with ids")
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError("inputs: expected a text, several texts, at least one, or ids")
        if streamer is not None and len(texts) > 1:
            raise UserError(f"streamer: got {len(texts)} texts: expected one")
        found = self._answers(texts, *how)
        return found[0] if isinstance(inputs, str) and known.num_return_sequences == 1 else found

    def _defaults(self) -> dict[str, Any]:
        unknown = self.tokenizer.unknown
        return {
            "eos_token_id": self.tokenizer.boundary,
            "max_length": self.max_positions + 1,
            "suppress_tokens": None if unknown is None else [unknown],
            **(self.config["generation"] or {}),
        }

    def _padding(self, ids: Tensor, mask: Tensor | None, options: Options) -> Tensor | None:
        """Which ids are padding; None for none."""
        if mask is None:
            if options.pad_token_id is None or options.pad_token_id in options.ends:
                return None
            return ids == options.pad_token_id
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise UserError(f"attention_mask: expected {tuple(ids.shape)}, as inputs have, got {what}")
        return (mask == 0).to(ids.device)

    def _answers(self, texts: Sequence[str], options: Options, *how: Any) -> list[str]:
        """Of texts, some at once: those whose lengths are alike."""
        sources = list(map(self.source_of, texts))
        wanted, found = options.num_return_sequences, [""] * (len(texts) * options.num_return_sequences)
        order = sorted(range(len(texts)), key=lambda place: -len(sources[place]))
        for first in range(0, len(order), _ANSWERED_AT_ONCE):
            chosen = order[first : first + _ANSWERED_AT_ONCE]
            tokens, lengths = Lengths.of([sources[place] for place in chosen], self.device)
            ids = self._answered(tokens, lengths, options, *how).tolist()
            for row, answer in enumerate(ids):
                found[chosen[row // wanted] * wanted + row % wanted] = self.tokenizer.decode(
                    _before_end(answer[1:], options.ends)
                )
        return found

    def _answered(
        self,
        tokens: Tensor,
        lengths: Lengths,
        options: Options,
        given: tuple[Processor, ...],
        generator: torch.Generator | None,
        streamer: Streamer | None,
    ) -> Tensor:
        """Ids of answers to packed sources."""
        if lengths.longest > self.max_positions:
            raise UserError(
                f"inputs: a source of {lengths.longest} tokens, with its end, is more than the {self.max_positions} "
                f"that {self.name} has positions for: expected a shorter one"
            )
        copies = options.num_beams if options.num_beams > 1 else options.num_return_sequences
        ids = torch.full((len(lengths.each) * copies, 1), self.tokenizer.start, device=self.device)
        longest = options.longest(1, self.max_positions + 1)
        if longest > self.max_positions + 1:
            raise UserError(
                f"max_length={longest}: expected at most {self.max_positions + 1}, of the start and the "
                f"{self.max_positions} that {self.name} has positions for"
            )
        plan = Plan(ids, None, longest, options, given, generator)
        with evaluating(self):
            return self._decoded(plan, streamer, lambda: self._begin(tokens, lengths, copies, self._engine(plan)))

    def begin(self, tokens: Tensor, lengths: Lengths, copies: int, steps: int) -> Sequences:
        """New answers, on the native engine where it runs.

        Args:
            tokens: int64 (S,), packed sources.
            lengths: of them.
            copies: answers to each source, in succession.
            steps: that are about to be made, about.
        """
        return self._begin(tokens, lengths, copies, self._engine_or_none(steps))

    def _begin(self, tokens: Tensor, lengths: Lengths, copies: int, engine: Engine | None) -> Sequences:
        # A backend that is forced is the engine's here: CUDA's kernels are not all that an encoder needs.
        is_on_cuda = engine is not None and engine.backend == "cuda"
        with backend("auto") if is_on_cuda else nullcontext():
            memory = self.encode(tokens, lengths)
        if engine is None:
            return Answers(self, memory, lengths, copies)
        kept = engine.remember(lengths.padded(memory), torch.tensor(lengths.each))
        return engine.begin(len(lengths.each) * copies, kept)

    def spec(self) -> Spec:
        """See `Decoding.spec`: of the decoder."""
        config, decoder = self.config, self.transformer.decoder
        if type(self).forward is not Seq2SeqTransformer.forward:
            raise Refused(f"{type(self).__name__} overrides forward")
        for part, cls in ((self.embedding, nn.Embedding), (self.transformer, Stacks), (decoder, Stack)):
            exactly(part, cls)
        embedding = parameter(self.embedding.weight)
        return Spec(
            embedding=embedding,
            positions=parameter(self.positions),
            frequencies=None,
            rotation_scale=1.0,
            layers=tuple(layer.spec() for layer in decoder.layers),
            norm=None if decoder.norm is None else norm_of(decoder.norm),
            head=Linear(embedding),
            heads=config["nhead"],
            kv_heads=config["nhead"],
            head_size=config["d_model"] // config["nhead"],
            epsilon=config["layer_norm_eps"],
            norm_kind="LAYER_NORM",
            activation=CODES[config["activation"]],
            order="BEFORE" if config["norm_first"] else "AFTER",
            embedding_scale=self.scale,
        )


class Answers:
    """Answers that grow, in PyTorch's own memory: a memory's keys and values once, those of the answers as they come.

    Args:
        model: whose answers they are.
        memory: (S, d_model), packed, what the encoder made of the sources.
        of_memory: lengths of its sequences.
        copies: answers to each source, in succession.

    Attributes:
        length: tokens that each answer has been given.
    """

    def __init__(self, model: Seq2SeqTransformer, memory: Tensor, of_memory: Lengths, copies: int) -> None:
        self.model, self.length, self._copies = model, 0, copies
        self._layers = model.transformer.decoder.layers
        self._seen = None if of_memory.is_even else of_memory.visible[:, None, None, :]
        self._memories = [
            tuple(of_memory.padded(part).transpose(1, 2) for part in layer.multihead_attn.projected(memory, 1, 2))
            for layer in self._layers
        ]
        rows, (_, heads, _, size) = len(of_memory.each) * copies, self._memories[0][0].shape
        self._past = memory.new_empty(len(self._layers), 2, rows, heads, 0, size)

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """See `decoding.Sequences`."""
        return self.extend(ids[:, None], positions[:, None], None, 1)[:, 0]

    def extend(self, ids: Tensor, positions: Tensor, visible: Tensor | None, keep: int) -> Tensor:
        """See `decoding.Sequences`; all answers are of one length."""
        self._make_room(ids.shape[1])
        x = self.model.embedded(ids, positions)
        for number, layer in enumerate(self._layers):
            x = layer.parts(x, lambda x, n=number: self._to_itself(n, x), lambda x, n=number: self._to_memory(n, x))
        self.length += ids.shape[1]
        return self.model.logits(self.model.transformer.decoder.finished(x[:, -keep:])).float()

    def reorder(self, parents: Tensor) -> None:
        """See `decoding.Sequences`; a parent is of the same source."""
        self._past = self._past[:, :, parents]

    def _make_room(self, count: int) -> None:
        if (lacking := self.length + count - self._past.shape[4]) > 0:
            more = max(lacking, _ROOM)
            self._past = torch.cat(
                [self._past, self._past.new_empty(*self._past.shape[:4], more, self._past.shape[5])], 4
            )

    def _to_itself(self, number: int, x: Tensor) -> Tensor:
        attention = self._layers[number].self_attn
        query, *new = (part.transpose(1, 2) for part in attention.projected(x, 0, 2))
        end = self.length + x.shape[1]
        for kept, part in zip(self._past[number], new, strict=True):
            kept[:, :, self.length : end] = part
        key, value = self._past[number, :, :, :, :end]
        found = functional.scaled_dot_product_attention(
            query, key, value, is_causal=x.shape[1] > 1, alignment="lower_right"
        )
        return attention.out_proj(found.transpose(1, 2).flatten(2))

    def _to_memory(self, number: int, x: Tensor) -> Tensor:
        """Copies are queries beside each other: there is one memory for all."""
        attention, (key, value) = self._layers[number].multihead_attn, self._memories[number]
        (query,) = attention.projected(x.unflatten(0, (-1, self._copies)).flatten(1, 2), 0, 0)
        found = functional.scaled_dot_product_attention(query.transpose(1, 2), key, value, self._seen)
        return attention.out_proj(found.transpose(1, 2).flatten(2)).view(x.shape)


def _before_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


def _in_parts(sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Iterator[list[int]]:
    """Places of pairs that are scored together."""
    chosen, count = [], 0
    for place, (source, target) in enumerate(zip(sources, targets, strict=True)):
        size = len(source) + len(target)
        if chosen and count + size > _SCORED_AT_ONCE:
            yield chosen
            chosen, count = [], 0
        chosen.append(place)
        count += size
    if chosen:
        yield chosen


def _check_alike(ours: nn.Module, theirs: nn.Module) -> None:
    """Refuses, by ValueError, a layer of torch's that computes something else with the same weights."""
    for name, own, other in (
        ("nhead", ours.self_attn.heads, theirs.self_attn.num_heads),
        ("norm_first", ours.norm_first, theirs.norm_first),
        ("activation", ours.activation, theirs.activation),
        ("layer_norm_eps", ours.norm1.eps, theirs.norm1.eps),
    ):
        if own != other:
            raise ValueError(
                f"module: {name} is {getattr(other, '__name__', other)}: expected {getattr(own, '__name__', own)}"
            )
