"""What the demo trains on text, and the texts and figures that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from rich.console import Console
from torch import Tensor, nn

from aigc_fast.cli.demo.learn import SEED, trained
from aigc_fast.data import TextDataset
from aigc_fast.generation import provenance_of, write_text
from aigc_fast.media.text import TEXT
from aigc_fast.models import CharRNN, TextModel
from aigc_fast.ops.recurrent.sampling import sample_tokens
from aigc_fast.runtime.timing import Timing, interleaved
from aigc_fast.training import TrainingResult

CELLS = ("rnn", "lstm", "gru")
NGRAM = "ngram"
SHOWN = 400
TIMED = 200
MEASUREMENTS = 6
_MODEL = MappingProxyType({"hidden": 256, "embedding": 64, "dropout": 0.0})
_TRAINING = MappingProxyType({"half_life": 1.0})
_DRAWN = MappingProxyType({"length": SHOWN, "temperature": 0.7})


def run_name(cell: str) -> str:
    """What the run of a cell is called, and its files begin with."""
    return f"char-rnn-{cell}"


TEXTS = (*map(run_name, CELLS), NGRAM)
"""The models that write; the files are called MODEL.txt."""


@dataclass(frozen=True)
class Written:
    """Character models of three cells, an n-gram model, and what they gave.

    Attributes:
        results: the runs, by the models' names in `TEXTS`.
        texts: what they write, likewise.
        speed: of 200 characters from the LSTM: "fast" by this package, "cell" by a loop over torch.nn.LSTMCell.
    """

    results: dict[str, TrainingResult]
    texts: dict[str, Path]
    speed: dict[str, Timing]


def write(
    dataset: TextDataset, steps: int, folder: Path, console: Console | None, device: torch.device, seconds: float
) -> Written:
    """Trains the models, lets each write and times the LSTM.

    Args:
        dataset: what they learn from.
        steps: training steps of each cell.
        folder: gets the texts, and the runs in folders of the models' names.
        console: where the progress bars go.
        device: where they are trained.
        seconds: how long to time.
    """
    results = {}
    for cell in CELLS:
        training = {"measure_interval": max(10, steps // MEASUREMENTS), **_TRAINING}
        config = {**_MODEL, "cell": cell}
        name = run_name(cell)
        results[name] = trained("char-rnn", dataset, steps, folder, console, config, training, device, name)
    results[NGRAM] = trained(NGRAM, dataset, 1, folder, console, {}, {}, device)
    texts = {name: _written(result.model, folder / f"{name}.txt") for name, result in results.items()}
    return Written(results, texts, _timed(results[run_name("lstm")].model, seconds))


def _written(model: TextModel, path: Path) -> Path:
    (text,) = TEXT.draw(model, 1, SEED, **_DRAWN)
    return write_text(path, text, provenance_of(model, SEED, **_DRAWN, command="aigc-fast demo"))


def _timed(model: CharRNN, seconds: float) -> dict[str, Timing]:
    generator = torch.Generator().manual_seed(SEED)
    begin = torch.tensor([model.tokenizer.boundary], device=model.device)
    calls: dict[str, Callable[[], object]] = {
        "fast": lambda: sample_tokens(
            model.recurrent, model.embedding, model.head, begin, None, TIMED, generator=generator
        ),
        "cell": _loop(model, begin),
    }
    return interleaved(calls, seconds)


def _loop(model: CharRNN, begin: Tensor) -> Callable[[], list[int]]:
    """The same characters a step at a time, as one writes it with torch.nn alone."""
    recurrent = model.recurrent
    cell = nn.LSTMCell(recurrent.input_size, recurrent.hidden_size, device=model.device)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in recurrent.state_dict().items()})

    @torch.no_grad()
    def call() -> list[int]:
        token = begin
        hidden = memory = torch.zeros(1, recurrent.hidden_size, device=model.device)
        found = []
        for _ in range(TIMED):
            hidden, memory = cell(model.embedding(token), (hidden, memory))
            token = torch.multinomial(model.head(hidden).softmax(-1), 1)[:, 0]
            found.append(int(token))
        return found

    return call
