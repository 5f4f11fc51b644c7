"""A family that the package does not have: a medium, a data set, a model without a latent, and its training."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from aigc_fast.data import Dataset
from aigc_fast.generation.provenance import from_record, to_record
from aigc_fast.media import ItemFeed, Kind, Medium
from aigc_fast.models import Model
from aigc_fast.settings import Setting
from aigc_fast.training import Trainer, TrainingConfig

LETTERS = 4


@dataclass(frozen=True)
class Lines(Dataset):
    unit = "lines"
    codes: torch.Tensor
    labels: None = None
    class_names: tuple[str, ...] = ()
    name: str = "lines"
    notes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.codes)

    @property
    def shape(self):
        return {"letters": LETTERS}

    def _form(self):
        return f"{self.codes.shape[1]} letters"

    def _content(self):
        return self.codes


class LineFeed(ItemFeed):
    def batch(self, indices):
        return self.dataset.codes[indices]

    def write_samples(self, model, seed, path, provenance):
        VERSE.write(path.with_suffix(".lines"), model.write(1, seed)[0], model, provenance, 1)
        return torch.zeros(1, 2, 2)


PAGE = Kind("page", "one text of many lines", lambda model, wanted, seed: model.write(wanted.count, seed))


class Verse(Medium):
    name, unit = "verse", "lines"
    suffixes = (".lines",)
    files, embedded = "for verse a file", "the lines"
    data_settings = (Setting("line_length", int, "Letters of a line.", least=2, shapes_model=True),)
    kinds = {PAGE: 5}  # noqa: RUF012
    evaluated = 7
    rows = (("Repeats", "repeats", "{:.2f}", "0"),)

    def load(self, path, line_length=6):
        return Lines(torch.arange(40 * line_length).view(40, line_length) % LETTERS)

    def load_for(self, model, path, **reading):
        return self.load(path)

    def load_like(self, training, folder, **reading):
        return training

    def is_item(self, path):
        return path.suffix == ".lines"

    def items(self, dataset):
        return dataset.codes

    def feed(self, model, dataset, config):
        return LineFeed(model, dataset, config)

    def draw(self, model, count, seed, labels=None, show=None):
        return model.write(count, seed)

    def joined(self, model, items, columns):
        return "/".join(items)

    def write(self, path, piece, model, provenance, scale):
        path.write_text(f"{piece}\n{to_record(provenance)}")

    def read_provenance(self, path):
        return from_record(path.read_text().splitlines()[1], path)

    def measure(self, items, training, model):
        return SimpleNamespace(
            count=len(items), training_count=len(training), as_dict=lambda: {"repeats": 0.0, "count": len(items)}
        )


VERSE = Verse()


@dataclass(frozen=True, kw_only=True)
class BigramConfig(TrainingConfig):
    batch_size: int = 8
    decay: float = 0.5


class BigramTrainer(Trainer):
    config_type = BigramConfig
    settings = (Setting("decay", float, "How much of a step's counts stays."),)
    shown = ("surprise",)

    def _step(self, inputs, labels):
        before, after = inputs[:, :-1].flatten(), inputs[:, 1:].flatten()
        counts = torch.zeros(LETTERS, LETTERS).index_put_((before, after), torch.ones(len(before)), accumulate=True)
        with torch.no_grad():
            self.model.counts.mul_(self.config.decay).add_(counts)
        return {"surprise": float(nn.functional.nll_loss(self.model.counts.log_softmax(1)[before], after))}


class Bigram(Model):
    name, family = "bigram", "bigrams"
    medium, trainer = f"{__name__}:VERSE", f"{__name__}:BigramTrainer"

    def __init__(self, *, letters: int = LETTERS, num_classes: None = None):
        super().__init__(letters=letters, num_classes=num_classes)
        self.letters = letters
        self.counts = nn.Parameter(torch.zeros(letters, letters), requires_grad=False)

    def write(self, count, seed):
        state, lines = torch.full((count,), seed % self.letters), []
        for _ in range(6):
            state = self.counts.argmax(1)[state]
            lines.append(state)
        return ["".join("abcd"[code] for code in line) for line in torch.stack(lines, 1).tolist()]
