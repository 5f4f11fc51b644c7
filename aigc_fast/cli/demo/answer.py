"""What the demo trains on pairs of texts, and the answers that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from rich.console import Console

from aigc_fast.cli.demo.learn import SEED, trained
from aigc_fast.data import PairDataset
from aigc_fast.data.pairs import Pair
from aigc_fast.generation import provenance_of, write_text
from aigc_fast.media.text import BEAMS
from aigc_fast.models import Seq2SeqTransformer
from aigc_fast.training import TrainingResult

RUN = "seq2seq"
ANSWERS = f"{RUN}.txt"
"""The file of the answers, and before it what the folder of the run is called."""
SHOWN = 10
_MODEL = MappingProxyType(
    {
        "d_model": 128,
        "nhead": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dim_feedforward": 512,
        "max_positions": 128,
        "norm_first": True,
    }
)
_TRAINING = MappingProxyType({"learning_rate": 3e-3, "batch_size": 64})
_WARM_UP = 100
# A small model stammers where it does not know how to go on.
_HOW = MappingProxyType({"no_repeat_ngram_size": 3})
_LONGEST = 100


@dataclass(frozen=True)
class Answered:
    """A trained encoder-decoder, and what it says of functions that it has not seen.

    Attributes:
        result: the run.
        dataset: what it learned from.
        pairs: the functions, each with the first line of its documentation.
        greedy: what it says of each, by the most probable token each time.
        beams: the same by beams.
        width: how many beams.
    """

    result: TrainingResult
    dataset: PairDataset
    pairs: list[Pair]
    greedy: list[str]
    beams: list[str]
    width: int = BEAMS


def answer(dataset: PairDataset, steps: int, folder: Path, console: Console | None, device: torch.device) -> Answered:
    """Trains an encoder-decoder and lets it answer.

    Args:
        dataset: what it learns from.
        steps: training steps.
        folder: gets the answers, and the run in a folder of its own.
        console: where the progress bar goes.
        device: where it is trained.
    """
    training = {"measure_interval": steps, "warm_up": min(_WARM_UP, steps // 3), **_TRAINING}
    result = trained("seq2seq", dataset, steps, folder, console, _MODEL, training, device, RUN)
    pairs = _spread([pair for pair in dataset.held_out if len(pair[0]) <= _LONGEST], SHOWN)
    sources = [source for source, _ in pairs]
    model: Seq2SeqTransformer = result.model
    greedy, beams = model.generate(sources, **_HOW), model.generate(sources, num_beams=BEAMS, **_HOW)
    _write(model, pairs, greedy, beams, folder / ANSWERS)
    return Answered(result, dataset, pairs, greedy, beams)


def _spread(pairs: list[Pair], count: int) -> list[Pair]:
    """Some, from all of them."""
    return pairs[:: max(1, len(pairs) // count)][:count]


def _write(model: Seq2SeqTransformer, pairs: list[Pair], greedy: list[str], beams: list[str], path: Path) -> None:
    text = "\n".join(
        f"{source}\n  documentation: {target}\n  greedy: {one}\n  {BEAMS} beams: {other}\n"
        for (source, target), one, other in zip(pairs, greedy, beams, strict=True)
    )
    write_text(path, text, provenance_of(model, SEED, num_beams=BEAMS, **_HOW, command="aigc-fast demo"))
