"""The GPT-2 that the demo trains, what it says, and how fast."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from aigc_fast.bench.peers import optional
from aigc_fast.cli.demo.learn import SEED, trained
from aigc_fast.data import TextDataset
from aigc_fast.generation import provenance_of, write_text
from aigc_fast.media.text import TEXT
from aigc_fast.metrics import Perplexity, perplexity
from aigc_fast.models import GPT2
from aigc_fast.runtime.timing import Timing, interleaved
from aigc_fast.training import TrainingResult

NAME, BEAMS = "gpt2", "gpt2-beams"
SAYINGS = (NAME, BEAMS)
"""What it says; the files are called SAYING.txt."""
PROMPT = "The value of"
CALL = MappingProxyType({"max_length": 50, "num_beams": 5, "no_repeat_ngram_size": 2})
"""How it is asked by beams."""
TIMED = 50
MEASUREMENTS = 4
_DRAWN = MappingProxyType({"prompt": PROMPT, "length": 100, "temperature": 0.7})
_TRAINING = MappingProxyType({"warm_up": 30, "half_life": 2.0})


@dataclass(frozen=True)
class Spoken:
    """A GPT-2 and what it gave.

    Attributes:
        result: the run's.
        texts: what it says, by the names in `SAYINGS`: drawn, and by beams.
        perplexity: of the text that was held out.
        speed: of 50 tokens, the prompt included, one by one, each the most probable one, and by the beams of `CALL`:
            "greedy" and "beams" by this package, "greedy, transformers" and "beams, transformers" where that is
            installed.
    """

    result: TrainingResult
    texts: dict[str, Path]
    perplexity: Perplexity
    speed: dict[str, Timing]


def speak(
    dataset: TextDataset, steps: int, folder: Path, console: Console | None, device: torch.device, seconds: float
) -> Spoken:
    """Trains a GPT-2, lets it speak and times it.

    Args:
        dataset: what it learns from, of subwords.
        steps: training steps.
        folder: gets the texts, and the run in a folder of the model's name.
        console: where the progress bar goes.
        device: where it is trained.
        seconds: how long to time.
    """
    training = {"measure_interval": max(5, steps // MEASUREMENTS), **_TRAINING}
    result = trained(NAME, dataset, steps, folder, console, {"dropout": 0.1}, training, device)
    model = result.model
    (drawn,) = TEXT.draw(model, 1, SEED, **_DRAWN)
    said = {NAME: (drawn, _DRAWN), BEAMS: (model.generate(PROMPT, **CALL), {"prompt": PROMPT, **CALL})}
    texts = {name: _written(model, text, settings, folder / f"{name}.txt") for name, (text, settings) in said.items()}
    return Spoken(result, texts, perplexity(model, dataset.held_out), _timed(model.cpu(), seconds))


def _written(model: GPT2, text: str, settings: MappingProxyType[str, Any], path: Path) -> Path:
    return write_text(path, text, provenance_of(model, SEED, **settings, command="aigc-fast demo"))


def _timed(model: GPT2, seconds: float) -> dict[str, Timing]:
    ids = torch.tensor([model.tokenizer.encode_prompt(PROMPT)])
    # No sequence ends before the others.
    options = {"max_length": TIMED, "min_length": TIMED}
    ways = {"greedy": options, "beams": {**CALL, **options}}
    models = {"": model, **_by_transformers(model)}
    return interleaved(
        {name + of: _call(each, ids, given) for name, given in ways.items() for of, each in models.items()}, seconds
    )


def _call(model: Any, ids: Tensor, options: dict[str, Any]) -> Callable[[], Tensor]:
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options)


def _by_transformers(model: GPT2) -> dict[str, Any]:
    transformers = optional("transformers")
    if transformers is None:
        return {}
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(Path(folder) / "model")
        theirs = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
    theirs.generation_config.pad_token_id = model.tokenizer.boundary
    return {", transformers": theirs}
