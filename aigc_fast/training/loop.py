"""The one training loop."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from aigc_fast.data import Dataset
from aigc_fast.errors import UserError
from aigc_fast.generation import provenance_of
from aigc_fast.models import Model, describe, save
from aigc_fast.runtime.ranks import RankLostError
from aigc_fast.runtime.rows import Split
from aigc_fast.training.checkpoints import (
    checkpoint_path,
    checkpoints_in,
    forked_generators,
    random_state,
    read_checkpoint,
    read_newest_checkpoint,
    restore_checkpoint,
    set_random_state,
    write_checkpoint,
    write_parts_of_checkpoint,
)
from aigc_fast.training.config import TrainingConfig
from aigc_fast.training.feed import feed_of
from aigc_fast.training.folder import RunFolder
from aigc_fast.training.log import Averages, ProgressBar, RunLog
from aigc_fast.training.parts import own
from aigc_fast.training.trainer import Trainer, make_trainer
from aigc_fast.wording import singular

Callback = Callable[[int, Mapping[str, float]], None]

log = logging.getLogger("aigc_fast")

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
_UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)
_COLLAPSED = 0.2
_SILENT_KL = 0.1
_MAY_CHANGE = (
    "epochs",
    "steps",
    "log_interval",
    "sample_interval",
    "checkpoint_interval",
    "keep_checkpoints",
    "measure_interval",
    "sharded",
    "tensorboard",
)


class TrainingInterrupted(KeyboardInterrupt):
    """A run ended after a signal, such as that of Ctrl-C, or after another process ended; it wrote a checkpoint.

    Attributes:
        checkpoint: the file to resume from.
    """

    def __init__(self, checkpoint: Path, why: str = "interrupted") -> None:
        super().__init__(f"{why}; {checkpoint} holds everything to go on: --resume latest")
        self.checkpoint = checkpoint


@dataclass(frozen=True)
class TrainingResult:
    """The result of a finished run.

    Attributes:
        model: the trained model in eval mode, a GAN with its averaged generator. If it was trained in parts, the first
            process has the whole model, the others their parts.
        model_path: the file, for `aigc_fast.models.load`.
        rows: the log: {"step": ..., losses by name}.
        steps: total number of steps.
        seconds: time taken by this call's steps, without samples and checkpoints.
        items_per_second: items trained on in this call, divided by `seconds`; 0 if no step was left.
        unit: the name of these items, in the plural: images, sounds, characters.
    """

    model: Model
    model_path: Path
    rows: list[dict[str, Any]]
    steps: int
    seconds: float
    items_per_second: float
    unit: str


def train(
    model: Model,
    dataset: Dataset,
    config: TrainingConfig,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool | str | os.PathLike[str] = False,
    overwrite: bool = False,
    callbacks: tuple[Callback, ...] = (),
    console: Console | None = None,
) -> TrainingResult:
    """Trains a model.

    Writes `model.safetensors`, `log.jsonl`, samples as `samples/step-*` and `checkpoints/step-*.safetensors` into
    `out_dir`. The run depends only on the model's initial weights, the data and the configuration: a run that is
    interrupted and resumed gives the same weights, bit for bit, as one that is not. PyTorch's default generators are
    left as they were. After SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 or SIGXCPU the current step is finished,
    a checkpoint is written and `TrainingInterrupted` is raised; another Ctrl-C stops right away. Signals that are
    ignored, or that already have a handler, are left alone. A run that replaces another one leaves it intact until it
    has its own first checkpoint.

    With a `torch.distributed` process group, as under `torchrun`, its processes train together: each takes a part of
    each batch, and the results are, to rounding, those of a single process. Batch norms use the whole batch's mean and
    variance. The first process writes; `out_dir` and the data are the same for all. A run can be resumed with any
    number of processes. If one of them ends, another writes a checkpoint.

    Args:
        model: the model to train, in place, on its device.
        dataset: data for the model's medium; with classes if the model is conditional.
        config: as from `default_config`.
        out_dir: the run's folder, which is created if it is missing.
        resume: True or "latest" for the newest checkpoint in `out_dir`, "auto" for the same if there is one, or the
            path of a checkpoint.
        overwrite: whether a new run may replace one in `out_dir`; files that this package did not write are never
            replaced.
        callbacks: called after each step with the number of the step, from 1, and its losses by name.
        console: where to print the data's summary and notes, and a progress bar; None for nowhere.

    Returns:
        The trained model, its file and the log.

    Raises:
        UserError: if the data, the batch size or the number of steps does not suit the model, `out_dir` can't be
            written to or holds files that may not be replaced, or the checkpoint is damaged, of another run or beyond
            the number of steps; nothing is overwritten.
        TrainingInterrupted: after a signal or, in the process that wrote the checkpoint, after the end of another one.
        RankLostError: in the remaining processes.
    """
    run = _Run(model, dataset, config, Path(out_dir))
    with forked_generators(model.device):
        torch.manual_seed(config.seed)
        try:
            run.start(resume, overwrite)
            return run.go(callbacks, console)
        finally:
            if run.ranks.is_first:
                run.folder.close()


class _Run:
    """A run under way."""

    def __init__(self, model: Model, dataset: Dataset, config: TrainingConfig, folder: Path) -> None:
        self.feed = feed_of(model, dataset, config)
        self.model, self.dataset, self.config, self.folder = model, dataset, config, RunFolder(folder)
        self.trainer: Trainer = make_trainer(model, config)
        self.ranks = self.trainer.ranks
        self.total = self.trainer.total_steps = config.steps or config.epochs * self.feed.epoch_steps
        self._check_total()
        self.averages = Averages()
        self.log: RunLog | None = None
        self.latest: dict[str, float] = {}
        self.warned = False
        self.seconds, self.steps_here = 0.0, 0
        self.record = {
            **describe(model),
            "training": dataclasses.asdict(config),
            "data": dataset.record(),
            "classes": list(dataset.class_names),
            "notes": list(self.notes),
        }

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the data, and why."""
        return (*self.dataset.notes, *self.feed.notes)

    def _check_total(self) -> None:
        for name in self.trainer.optimizers:
            first = self.trainer.first_step(name)
            if self.total < first:
                raise UserError(
                    f"steps={self.total}: the {name} is never trained, for it is in every step number {first} "
                    f"(critic_steps, --critic-steps): expected at least {first} steps"
                )

    def start(self, resume: bool | str | os.PathLike[str], overwrite: bool) -> None:
        if resume or overwrite:
            self.ranks.from_first(self.folder.complete)
        if resume == "auto":
            resume = self.ranks.from_first(lambda: bool(checkpoints_in(self.folder.checkpoints)))
        kept = self._restore(resume) if resume else -1
        if not self.trainer.is_sharded:
            modules = self.trainer.modules.values()
            self.ranks.spread(value for module in modules for value in module.state_dict().values())
        self.folder.follow(*self.ranks.from_first(lambda: self._begin(kept, overwrite)))
        self.is_new = kept < 0

    def _begin(self, kept: int, overwrite: bool) -> tuple[bool, list[str]]:
        if kept < 0:
            self.folder.check_free(overwrite)
        self.folder.begin(kept)
        self.log = RunLog(self.folder, max(kept, 0), self.config.tensorboard)
        return self.folder.begun()

    def _restore(self, resume: bool | str | os.PathLike[str]) -> int:
        """Goes on from a checkpoint; its step, or −1 where it is not of the run in the folder."""
        path, tensors, record = self._checkpoint_of(resume)
        self._check_same_run(path, record)
        if record["step"] > self.total:
            raise UserError(f"{path}: is at step {record['step']} already, {self.total} were asked for")
        restore_checkpoint(path, tensors, record, self.trainer)
        self.averages = Averages(record["averages"])
        return record["step"] if self.folder.holds(path) else -1

    def _checkpoint_of(self, resume: bool | str | os.PathLike[str]) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
        if resume is True or resume == "latest":
            return read_newest_checkpoint(self.folder.checkpoints)
        path = Path(resume)
        return path, *read_checkpoint(path)

    def _check_same_run(self, path: Path, record: Mapping[str, Any]) -> None:
        there, here = _settings(record), _settings(self.record)
        differences = [
            f"{name} is {there.get(name)} there and {here.get(name)} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if differences:
            raise UserError(f"{path}: is of another run: {', '.join(differences)}")

    def go(self, callbacks: tuple[Callback, ...], console: Console | None) -> TrainingResult:
        if console is not None:
            for line in (self.dataset.summary, *(f"Note: {note}" for note in self.notes)):
                console.print(line, soft_wrap=True, markup=False)
        bar = ProgressBar(self.model.name, self.total, self.feed.unit, console)
        with _interruptions() as interrupted, bar:
            try:
                return self._steps(bar, callbacks, interrupted)
            except RankLostError as error:
                self._rescue(error)
                raise

    def _steps(
        self, bar: ProgressBar, callbacks: tuple[Callback, ...], interrupted: Callable[[], bool]
    ) -> TrainingResult:
        bar.show(self.trainer.step_count, {}, self._rate())
        if self.trainer.is_sharded and self.is_new:
            # When a process ends, its part of what came since is lost.
            self._checkpoint()
        begin = self.trainer.step_count
        self._mark()
        for inputs, labels, split in islice(self.feed.batches(begin), min(self.total - begin, sys.maxsize)):
            values = self._timed_step(inputs, labels, split)
            step = self.trainer.step_count
            values |= self._measured(step)
            self.latest |= values
            shown = {name: self.latest[name] for name in self.trainer.shown if name in self.latest}
            bar.show(step, shown, self._rate())
            self._report(step, values)
            for callback in callbacks:
                callback(step, values)
            if self.ranks.any(interrupted()):
                raise TrainingInterrupted(self._checkpoint())
            if self._due(step, self.config.checkpoint_interval):
                self._checkpoint()
            self._mark()
        return self._finish()

    def _mark(self) -> None:
        """Notes where the next batch is made from, should another process end before its step does."""
        if self.ranks.count > 1:
            self.marked = self.trainer.step_count, random_state(self.model.device)

    def _rescue(self, error: RankLostError) -> None:
        """Leaves a checkpoint of the last step that was done, by one of the processes that are left.

        Of a model in parts none of them has the whole: the last checkpoint stays.
        """
        if not self.ranks.claims("checkpoint"):
            return
        if self.trainer.is_sharded:
            written = checkpoints_in(self.folder.checkpoints)
            if written:
                raise TrainingInterrupted(written[-1], "another process has ended") from error
            return
        step, state = self.marked
        if self.trainer.step_count == step:
            self.trainer.take_back()
            set_random_state(state, self.model.device, step)
        self._check_weights()
        path = self._write_checkpoint({})
        with self.trainer.sampling() as model:
            self._write_model(model)
        raise TrainingInterrupted(self.folder.checkpoints / path.name, "another process has ended") from error

    def _timed_step(self, inputs: Any, labels: Tensor | None, split: Split | None) -> dict[str, float]:
        begin = time.perf_counter()
        values = self.trainer.step(inputs, labels, split)
        self.seconds += time.perf_counter() - begin
        self.steps_here += 1
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise self._diverged(str(bad))
        return values

    def _measured(self, step: int) -> dict[str, float]:
        """Of the data that is held out, in the steps that it is due and in the last."""
        interval = self.feed.measure_interval
        if not self._due(step, interval) and not (interval and step == self.total):
            return {}
        with self.trainer.sampling() as model:
            return self.ranks.from_first(lambda: dict(self.feed.measure(model)))

    def _rate(self) -> float:
        return self.steps_here * self.feed.step_size / max(self.seconds, 1e-9)

    def _due(self, step: int, interval: int) -> bool:
        return interval > 0 and step % interval == 0 and step < self.total

    def _report(self, step: int, values: Mapping[str, float]) -> None:
        self.averages.add(values)
        if step % self.config.log_interval == 0 or step == self.total:
            means = self.averages.take()
            self.ranks.from_first(lambda: self._add_row(step, means))
        if self._due(step, self.config.sample_interval):
            self._sample(step)

    def _add_row(self, step: int, means: Mapping[str, float]) -> None:
        self.log.add(step, means)
        if not self.warned:
            self._warn_of_collapse(step)

    def _warn_of_collapse(self, step: int) -> None:
        diversity, kl = self.log.rows[-1].get("diversity", 1.0), self._highest_kl(step)
        self.warned = diversity < _COLLAPSED or kl < _SILENT_KL
        if diversity < _COLLAPSED:
            log.warning("step %d: the generator repeats itself: diversity %.2f, where the data has 1", step, diversity)
        elif self.warned:
            log.warning(
                "step %d: the posterior has collapsed: a KL of %.1g nats, so that the latent says nothing of its %s; "
                "try a lower --beta, or --free-bits",
                step,
                kl,
                singular(self.dataset.unit),
            )

    def _highest_kl(self, step: int) -> float:
        """Of the latest rows that count: the first is from before the code has learned anything, and one may dip."""
        rows = self.log.rows[1:][-1 if step == self.total else -2 :]
        enough = len(self.log.rows) > (1 if step == self.total else 2)
        return max(row.get("kl", math.inf) for row in rows) if enough else math.inf

    def _sample(self, step: int) -> None:
        provenance = provenance_of(self.model, self.config.seed, step=step, training=self.record["training"])
        path = self.folder.samples / f"step-{step:08d}"
        with self.trainer.sampling() as model:
            self.ranks.from_first(
                lambda: self.log.add_sample(step, self.feed.write_samples(model, self.config.seed, path, provenance))
            )

    def _checkpoint(self) -> Path:
        self._check_weights()
        path = checkpoint_path(self.folder.checkpoints, self.trainer.step_count)
        # Parts that the run went on from are not put at risk to write the same.
        if not self.trainer.is_sharded or self.steps_here or not self.ranks.from_first(path.exists):
            parts = write_parts_of_checkpoint(self.folder.checkpoints, self.trainer)
            self.ranks.from_first(lambda: self._write_checkpoint(parts))
        with self.trainer.sampling() as model:
            self.ranks.from_first(lambda: self._write_model(model))
        self.folder.follow(False, [])
        return self.folder.checkpoints / path.name

    def _write_checkpoint(self, parts: Mapping[str, str]) -> Path:
        record, keep = {**self.record, "averages": self.averages.sums}, self.config.keep_checkpoints
        return write_checkpoint(self.folder.checkpoints, self.trainer, record, keep, parts)

    def _write_model(self, model: Model) -> None:
        save(model, self.folder.model, {**self.record, "step": self.trainer.step_count})
        self.folder.take_place()

    def _check_weights(self) -> None:
        states = {name: module.state_dict() for name, module in self.trainer.modules.items()}
        tensors = {f"{name}.{key}": own(value) for name, state in states.items() for key, value in state.items()}
        bad = next((name for name, value in tensors.items() if not value.isfinite().all()), None)
        if self.trainer.is_sharded:
            bad = next(filter(None, self.ranks.from_all(bad)), None)
        if bad:
            raise self._diverged(f"{bad} is not finite")

    def _diverged(self, how: str) -> UserError:
        return UserError(f"training diverged at step {self.trainer.step_count}: {how}; try a lower learning rate")

    def _finish(self) -> TrainingResult:
        self._checkpoint()
        if self.config.sample_interval:
            self._sample(self.trainer.step_count)
        self.trainer.finish()
        done = self.total, self.seconds, self._rate(), self.feed.unit
        rows = self.ranks.from_first(lambda: self.log.rows)
        with self.trainer.sampling() as model:
            return TrainingResult(model.eval(), self.folder.model, rows, *done)


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must share to be one, by dotted names."""
    settings = {"model": record.get("model"), "classes": record.get("classes")}
    for part in ("config", "data", "training"):
        values = record[part]
        settings.update({f"{part}.{name}": value for name, value in values.items() if name not in _MAY_CHANGE})
    return settings


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """Turns the first signal into a flag to ask for; a Ctrl-C after it interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def note(number: int, frame: object) -> None:
        # Others come in twos and threes, from the shell, the terminal and the kernel: the checkpoint under way goes on.
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    known = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in known}
    taken = {number: handler for number, handler in before.items() if handler in _UNHANDLED}
    for number in taken:
        signal.signal(number, note)
    try:
        yield asked.is_set
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
