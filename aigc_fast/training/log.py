"""What a run reports while it goes: a file of rows, TensorBoard, a progress bar."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections.abc import Mapping
from textwrap import indent
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.files import append, atomic, make_folder
from aigc_fast.training.folder import LOG_FILE, RunFolder, read_rows


class Averages:
    """Means of named values since they were last taken.

    Attributes:
        sums: (sum, count) of each name; JSON-able, so that a checkpoint can hold it.
    """

    def __init__(self, sums: Mapping[str, list[float]] | None = None) -> None:
        self.sums = {name: list(pair) for name, pair in (sums or {}).items()}

    @staticmethod
    def fits(sums: Any, steps: int) -> bool:
        """Whether `sums` can be those of a run after so many steps."""
        return isinstance(sums, dict) and all(
            isinstance(pair, list) and [type(number) for number in pair] == [float, int] and 1 <= pair[1] <= steps
            for pair in sums.values()
        )

    def add(self, values: Mapping[str, float]) -> None:
        """Counts one value for each name."""
        for name, value in values.items():
            pair = self.sums.setdefault(name, [0.0, 0])
            pair[0] += value
            pair[1] += 1

    def take(self) -> dict[str, float]:
        """The means, which start anew."""
        means = {name: total / count for name, (total, count) in self.sums.items()}
        self.sums.clear()
        return means


class RunLog:
    """The rows of a run, in memory, in `log.jsonl` and, when asked, in a TensorBoard file.

    Args:
        folder: the run's.
        kept: the step that the run goes on from: the folder's rows up to it are the run's, later ones come again. 0 for
            a run that begins.
        tensorboard: whether to write for TensorBoard.

    Attributes:
        rows: {"step": ..., losses by name} in order.

    Raises:
        UserError: when TensorBoard is asked for and not installed, or the log can't be read.
    """

    def __init__(self, folder: RunFolder, kept: int, tensorboard: bool) -> None:
        self._folder = folder
        self.rows = [row for row in read_rows(folder.path / LOG_FILE) if row["step"] <= kept] if kept else []
        self._written = False
        self._events = EventFile(folder, kept + 1) if tensorboard else None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row.

        Raises:
            UserError: when it can't be written.
        """
        self.rows.append({"step": step, **values})
        if self._written:
            append(self._folder.log, _line(self.rows[-1]).encode())
        else:
            with atomic(self._folder.log) as temporary:
                temporary.write_text("".join(map(_line, self.rows)), encoding="utf-8")
            self._written = True
        if self._events is not None:
            self._events.add_scalars(step, values)

    def add_sample(self, step: int, sample: Tensor | str) -> None:
        """Shows an image (C, H, W) in [-1, 1], or a text, in TensorBoard, when that is on.

        Raises:
            UserError: when it can't be written.
        """
        if self._events is not None:
            self._events.add_sample(step, sample)


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row) + "\n"


class EventFile:
    """A file of a run's losses and samples that TensorBoard reads.

    TensorBoard's own writer writes on a thread, where a full disk is told of in many lines and too late.

    Args:
        folder: the run's.
        first: the step that begins here: TensorBoard no longer shows what earlier files have from there on.

    Raises:
        UserError: when TensorBoard is not installed, or the file can't be written.
    """

    def __init__(self, folder: RunFolder, first: int) -> None:
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        except ImportError:
            raise UserError("TensorBoard is not installed: pip install 'aigc-fast[tensorboard]'") from None
        self._event, self._record, self._summary = event_pb2.Event, RecordWriter, summary
        self._folder = folder
        # TensorBoard reads the files in their names' order.
        self._name = f"events.out.tfevents.{time.time():.6f}.{os.getpid()}"
        for path in (folder.path / folder.tensorboard.name, folder.tensorboard):
            make_folder(path)
        self._add(step=first, file_version="brain.Event:2")
        self._add(step=first, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a number to each name's curve."""
        for name, value in values.items():
            self._add(step=step, summary=self._summary.scalar(name, value))

    def add_sample(self, step: int, sample: Tensor | str) -> None:
        """Adds an image (C, H, W) in [-1, 1], or a text."""
        if isinstance(sample, str):
            # As Markdown, which TensorBoard takes texts for, what stands four columns in is shown as it is.
            summary = self._summary.text("samples", indent(sample, "    ", lambda line: True))
        else:
            summary = self._summary.image("samples", (sample + 1) / 2, dataformats="CHW")
        self._add(step=step, summary=summary)

    def _add(self, **content: Any) -> None:
        record = io.BytesIO()
        self._record(record).write(self._event(wall_time=time.time(), **content).SerializeToString())
        append(self._folder.tensorboard / self._name, record.getvalue())


class ProgressBar:
    """A line on the terminal: steps, losses, items a second and the time left.

    Args:
        name: what is trained.
        total: steps in all.
        unit: what the items are called, in the plural.
        console: where to draw; None draws nothing.
    """

    def __init__(self, name: str, total: int, unit: str, console: Console | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            # On a narrow terminal it gives way, not the numbers.
            BarColumn(bar_width=None, table_column=Column(max_width=12)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[losses]}"),
            TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s"),
            TextColumn("left"),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            console=console,
            disable=console is None,
        )
        self._task = self._progress.add_task(name, total=total, losses="", rate=0.0)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The terminal may be gone, which is no reason to lose what the run has to say.
        with contextlib.suppress(OSError):
            self._progress.stop()

    def show(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """Draws the state after a step."""
        losses = "  ".join(f"{name} {value:.2f}" for name, value in values.items())
        self._progress.update(self._task, completed=step, losses=losses, rate=rate)
