"""Character models: a recurrent network that reads text, and tells what comes next."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from aigc_fast import nn as fast
from aigc_fast.models.base import check_counts
from aigc_fast.models.text.base import NetworkTextModel
from aigc_fast.models.text.elman import ElmanCell
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.models.text.tokenizers import Tokenizer
from aigc_fast.ops.recurrent.sampling import sample_tokens
from aigc_fast.runtime.weights import check_weights

CELLS: dict[str, type[nn.RNNBase]] = {"rnn": fast.RNN, "lstm": fast.LSTM, "gru": fast.GRU}
ELMAN = "elman"

State = Tensor | tuple[Tensor, Tensor]

# A multiple of 4, as the sampler asks for; so many come in a few milliseconds.
_DRAWN_AT_ONCE = 32
# Steps of all documents together that are scored in one call.
_SCORED_AT_ONCE = 16384


class CharRNN(NetworkTextModel):
    """A recurrent network over characters or bytes (Karpathy, "The Unreasonable Effectiveness of Recurrent Neural
    Networks", 2015).

    An embedding, recurrent layers, and a linear layer for the tokens' logits. Dropout is applied to the layers' inputs
    and to the last one's output, never to the recurrent connections (Zaremba, Sutskever and Vinyals, "Recurrent Neural
    Network Regularization", 2014). At the beginning of a document the state is zero.

    Args:
        tokenizer: a `Tokenizer` or its `config`.
        cell: "rnn" (with tanh), "lstm" or "gru"; "elman" for an `ElmanCell`, of one layer.
        hidden: units of each layer.
        num_layers: number of layers.
        embedding: size of the embedding vectors.
        dropout: the share of elements that training drops, in [0, 1).
        tied: whether the linear layer shares the embedding's weight (Press and Wolf, "Using the Output Embedding to
            Improve Language Models", 2017), which must be as large as `hidden` then; not for "elman".

    Attributes:
        embedding: of the tokens.
        recurrent: the layers: an `aigc_fast.nn.RNN`, `LSTM` or `GRU`, batch first; or an `ElmanCell`.
        head: the linear layer for the logits; None for "elman", whose cell has its own.

    Raises:
        ValueError: for an unknown cell, a size that is not positive or does not fit, or a dropout out of range.
    """

    name = "char-rnn"
    family = "character models"
    trainer = "aigc_fast.training.text:CharRNNTrainer"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer | Mapping[str, Any],
        cell: str = "lstm",
        hidden: int = 384,
        num_layers: int = 1,
        embedding: int = 64,
        dropout: float = 0.25,
        tied: bool = False,
        num_classes: None = None,
    ) -> None:
        check_counts(hidden=hidden, num_layers=num_layers, embedding=embedding)
        if cell not in (*CELLS, ELMAN):
            raise ValueError(f"cell={cell!r}: expected one of {', '.join((*CELLS, ELMAN))}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: expected at least 0 and below 1")
        if cell == ELMAN and (num_layers > 1 or tied):
            raise ValueError(f"num_layers={num_layers}, tied={tied}: expected 1 and False for cell={cell!r}")
        if tied and embedding != hidden:
            raise ValueError(f"tied: expected embedding={embedding} to be hidden={hidden}")
        super().__init__(
            tokenizer=tokenizer,
            cell=cell,
            hidden=hidden,
            num_layers=num_layers,
            embedding=embedding,
            dropout=dropout,
            tied=tied,
            num_classes=num_classes,
        )
        size = self.tokenizer.vocab_size
        self.embedding, self.dropout = nn.Embedding(size, embedding), fast.Dropout(dropout)
        if cell == ELMAN:
            self.recurrent, self.head = ElmanCell(embedding, hidden, size), None
            return
        between = dropout if num_layers > 1 else 0.0
        self.recurrent = CELLS[cell](embedding, hidden, num_layers, batch_first=True, dropout=between)
        self.head = nn.Linear(hidden, size)
        self.tied = tied
        self._tie()
        # `load_state_dict(assign=True)` gives each name a parameter of its own.
        self.register_load_state_dict_post_hook(_tie_again)
        self._remember_at_first()

    def _tie(self) -> None:
        if self.tied:
            self.embedding.weight = self.head.weight

    def _remember_at_first(self) -> None:
        """An LSTM whose forget gates are open learns sooner (Jozefowicz, Zaremba and Sutskever, "An Empirical
        Exploration of Recurrent Network Architectures", 2015)."""
        if isinstance(self.recurrent, nn.LSTM):
            for name, bias in self.recurrent.named_parameters():
                if name.startswith("bias_ih"):
                    with torch.no_grad():
                        bias.chunk(4)[1].fill_(1.0)

    def keep_weights(self, weights: str | None) -> None:
        """See `TextModel.keep_weights`: applies to the layers and, for sampling, the head; not to `ElmanCell`."""
        check_weights(weights)
        if isinstance(self.recurrent, ElmanCell):
            super().keep_weights(weights)
        self.recurrent.weights = weights

    @property
    def weights(self) -> str | None:
        """The format of the layers' weights; None for as they are."""
        return getattr(self.recurrent, "weights", None)

    def init_state(self, batch: int = 1) -> State:
        """The state before a document: zeros (num_layers, batch, hidden), two of them for an LSTM."""
        layers, hidden = self.config["num_layers"], self.config["hidden"]
        zeros = torch.zeros(layers, batch, hidden, dtype=self.dtype, device=self.device)
        return (zeros, zeros.clone()) if self.config["cell"] == "lstm" else zeros

    def forward(
        self, tokens: Tensor | PackedSequence, state: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """The logits of the token that follows each token.

        Args:
            tokens: int64 (N, T), or packed.
            state: after the tokens before, as this method gives it; None before a document.

        Returns:
            Logits (N, T, vocab_size), or packed as the tokens are; and the state after them.
        """
        is_packed = isinstance(tokens, PackedSequence)
        vectors = self.dropout(self.embedding(tokens.data if is_packed else tokens))
        if isinstance(self.recurrent, ElmanCell):
            logits, state = self._elman(PackedSequence(vectors, *tokens[1:]) if is_packed else vectors, state)
        else:
            found, state = self.recurrent(PackedSequence(vectors, *tokens[1:]) if is_packed else vectors, state)
            logits = self.head(self.dropout(found.data if is_packed else found))
        return PackedSequence(logits, *tokens[1:]) if is_packed else logits, state

    def _elman(self, vectors: Tensor | PackedSequence, state: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(vectors, PackedSequence):
            data, batch_sizes, order, back = vectors
            hidden = self.init_state(int(batch_sizes[0])) if state is None else state
            hidden = hidden if order is None else hidden[:, order]
            logits, last = self.recurrent.sequence(data, batch_sizes, hidden[0])
            return logits, (last if back is None else last[back])[None]
        batch, length = vectors.shape[:2]
        hidden = self.init_state(batch) if state is None else state
        steps = torch.full((length,), batch)
        logits, last = self.recurrent.sequence(vectors.transpose(0, 1).flatten(0, 1), steps, hidden[0])
        return logits.unflatten(0, (length, batch)).transpose(0, 1), last[None]

    def foreseen(self, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """See `NetworkTextModel.foreseen`; documents are read side by side."""
        self.check_tokens(tokens)
        boundary = self.tokenizer.boundary
        text = torch.cat([tokens.new_tensor([boundary]), tokens])
        starts = (text[:-1] == boundary).nonzero()[:, 0].cpu()
        lengths = torch.diff(starts, append=torch.tensor([len(tokens)]))
        order = lengths.argsort(descending=True, stable=True)
        starts, lengths = starts[order], lengths[order]
        done, state, step = 0, None, max(1, _SCORED_AT_ONCE // max(1, len(starts)))
        while len(starts):
            places, batch_sizes = packed_places(starts + done, (lengths - done).clamp(max=step))
            places = places.to(tokens.device)
            logits, state = self(PackedSequence(text[places], batch_sizes), state)
            yield places, logits.data.log_softmax(-1)
            done += step
            longer = int((lengths > done).sum())
            starts, lengths, state = starts[:longer], lengths[:longer], _rows(state, slice(longer))

    def _draw(self, context: list[int], sampling: Sampling, generator: torch.Generator | None) -> Iterator[list[int]]:
        if self.head is None:
            return self._draw_by_steps(context, sampling, generator)
        return self._draw_at_once(context, sampling, generator)

    def _draw_at_once(
        self, context: list[int], sampling: Sampling, generator: torch.Generator | None
    ) -> Iterator[list[int]]:
        tokens, state, head = torch.tensor(context, device=self.device), None, self._head_of_text()
        choice = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        while True:
            found, state = sample_tokens(
                self.recurrent, self.embedding, head, tokens, state, _DRAWN_AT_ONCE, **choice, generator=generator
            )
            yield found.tolist()
            tokens = found[-1:]

    def _head_of_text(self) -> nn.Linear:
        """The head, for which the token of unknown characters is impossible."""
        unknown = self.tokenizer.unknown
        if unknown is None:
            return self.head
        head = nn.Linear(self.head.in_features, self.head.out_features, device="meta")
        bias = self.head.bias.detach().clone()
        bias[unknown] = -math.inf
        head.weight, head.bias = self.head.weight, nn.Parameter(bias, requires_grad=False)
        return head

    def _draw_by_steps(
        self, context: list[int], sampling: Sampling, generator: torch.Generator | None
    ) -> Iterator[list[int]]:
        """With Elman's cell, whose output depends on the state before the step, as no sampler's does."""
        device = self.device if generator is None else generator.device
        logits, state = self(torch.tensor([context], device=self.device))
        found, hidden = logits[:, -1], state[0]
        while True:
            for uniform in torch.rand(_DRAWN_AT_ONCE, generator=generator, device=device).tolist():
                logarithms = found[0].float().cpu().numpy()
                if self.tokenizer.unknown is not None:
                    logarithms[self.tokenizer.unknown] = -np.inf
                token = sampling.choose(logarithms, uniform)
                yield [token]
                found, hidden = self.recurrent(self.embedding(torch.tensor([token], device=self.device)), hidden)


def _tie_again(model: CharRNN, keys: Any) -> None:
    model._tie()


def packed_places(starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Where packed parts of a text are taken from.

    Args:
        starts: int64 (N,), where each part begins.
        lengths: int64 (N,), of each part, longest first, at least 1.

    Returns:
        int64 (total,), the places in a PackedSequence's order, and its batch_sizes.
    """
    steps = torch.arange(int(lengths[0]))[:, None]
    there = steps < lengths
    return (starts + steps)[there], there.sum(1)


def _rows(state: State, rows: slice) -> State:
    return tuple(part[:, rows].contiguous() for part in state) if isinstance(state, tuple) else state[:, rows]
