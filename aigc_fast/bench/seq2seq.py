"""The encoder-decoder: a training step against torch.nn's, and answers against loops that keep keys and values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aigc_fast.bench import stock
from aigc_fast.bench.calls import Answering, Case
from aigc_fast.bench.contest import OURS, PYTORCH, Contest
from aigc_fast.bench.parity import ParityError, check_parity, in_float64
from aigc_fast.models import IdTokenizer, Seq2SeqTransformer
from aigc_fast.models.text.seq2seq import Pairs
from aigc_fast.models.text.stacks import packed
from aigc_fast.training import default_config, make_trainer
from aigc_fast.training.losses import smoothed_cross_entropy

LOOP = "a loop that keeps keys and values"
# How much less probable, as a logarithm, the best of equal hypotheses may be by rounding.
_ROUNDING = 1e-2
_END = 1


def answering(case: Case) -> Contest:
    """A training step, or answers."""
    call: Answering = case.call
    return _step(call) if call.work == "step" else _answers(call)


def _models(call: Answering, **settings: Any) -> tuple[stock.StockTransformer, Seq2SeqTransformer]:
    """PyTorch's, and ours with its weights; an end never comes up in what they read."""
    settings = {"dropout": call.dropout, "activation": "relu", **settings}
    theirs = stock.StockTransformer(call.vocabulary, call.size, call.layers, **settings)
    ours = Seq2SeqTransformer(
        tokenizer=IdTokenizer(call.vocabulary, _END),
        d_model=call.size,
        nhead=call.size // stock.HEAD,
        num_encoder_layers=call.layers,
        num_decoder_layers=call.layers,
        dim_feedforward=4 * call.size,
        final_norm=True,
        max_positions=stock.MOST_POSITIONS,
        **settings,
    )
    ours.load_transformer(theirs.transformer)
    ours.embedding.load_state_dict(theirs.embedding.state_dict())
    return theirs, ours


def _tokens(call: Answering, longest: int) -> list[Tensor]:
    return [torch.randint(2, call.vocabulary, (length,)) for length in call.lengths(longest)]


def _padded(rows: Sequence[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _step(call: Answering) -> Contest:
    theirs, ours = _models(call)
    sources, targets = _tokens(call, call.source), _tokens(call, call.target + 1)
    padded = _padded(sources), _padded([row[:-1] for row in targets]), _padded([row[1:] for row in targets])
    packed = ours.pairs([row.numpy() for row in sources], [row.numpy() for row in targets])
    trainer = make_trainer(ours, default_config(ours, batch_size=call.batch))
    optimiser = torch.optim.Adam(theirs.train().parameters(), trainer.peak, (0.9, 0.98), 1e-9, fused=True)
    return Contest(
        {OURS: partial(trainer.step, packed)},
        {PYTORCH: partial(stock.transformer_step, theirs, optimiser, *padded)},
        partial(_gate_of_step, call, padded, packed),
    )


def _gate_of_step(call: Answering, padded: Sequence[Tensor], packed: Pairs) -> tuple[float, float]:
    """Every gradient, without dropout and with a smooth activation: what is random, and kinks, cannot be compared."""
    theirs, ours = _models(call, dropout=0.0, activation="gelu")
    hidden = ours.hidden(packed.sources, packed.of_sources, packed.inputs, packed.of_inputs)
    loss, _ = smoothed_cross_entropy(ours.logits(hidden), packed.answers, 0.1)
    found = torch.autograd.grad(loss, list(ours.parameters()))
    stocks = [_gradients(model, padded) for model in (theirs, in_float64(theirs))]
    return check_parity(found, *stocks, torch.float32)


def _gradients(model: stock.StockTransformer, padded: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.autograd.grad(stock.transformer_loss(model, *padded), list(model.parameters()))


def _answers(call: Answering) -> Contest:
    theirs, ours = (model.eval() for model in _models(call))
    src, start = _padded(_tokens(call, call.source)), ours.tokenizer.start
    beams = call.beams if call.work == "beams" else 1
    options = {"num_beams": beams, "max_new_tokens": call.target, "eos_token_id": [], "attention_mask": src != 0}
    peer = partial(stock.beam_loop, beams=beams) if beams > 1 else stock.greedy_loop
    mine, other = partial(ours.generate, src, **options), partial(peer, theirs, src, start, call.target)
    return Contest(
        {OURS: lambda: (mine(),)}, {LOOP: lambda: (other(),)}, partial(_gate, theirs, ours, src, mine, other)
    )


def _gate(
    theirs: stock.StockTransformer,
    ours: Seq2SeqTransformer,
    src: Tensor,
    mine: Callable[[], Tensor],
    other: Callable[[], Tensor],
) -> tuple[float, float]:
    """The logits of the answers' tokens, and how probable the answers are beside those of the loop."""
    exact, found, wanted = in_float64(theirs), mine(), other()
    start = found[:, :1]
    scores = [_score(exact, src, ids) for ids in (found, torch.cat([start, wanted], 1))]
    if not bool((scores[0] >= scores[1] - _ROUNDING).all()):
        mean, expected = (score.mean().item() for score in scores)
        raise ParityError(f"answers have a mean log-likelihood of {mean:.3f}: expected {expected:.3f}")
    with torch.no_grad():
        return check_parity(
            (_of_ours(ours, src, found),),
            (_of_loop(theirs, src, found),),
            (exact(src, found[:, :-1]).flatten(0, 1),),
            torch.float32,
        )


def _score(model: stock.StockTransformer, src: Tensor, ids: Tensor) -> Tensor:
    """(N,), the sum of the logarithms of the tokens' probabilities."""
    with torch.no_grad():
        return model(src, ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None]).sum((1, 2))


def _of_loop(model: stock.StockTransformer, src: Tensor, ids: Tensor) -> Tensor:
    steps = stock.CachedSteps(copy.deepcopy(model), src)
    return torch.stack([steps.step(ids[:, place]) for place in range(ids.shape[1] - 1)], 1).flatten(0, 1)


def _of_ours(model: Seq2SeqTransformer, src: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        state = model.begin(*packed(src, src == 0), 1, ids.shape[1])
    positions = torch.zeros(len(ids), dtype=torch.int64)
    logits = [state.step(ids[:, place], positions + place) for place in range(ids.shape[1] - 1)]
    return torch.stack(logits, 1).flatten(0, 1)
