"""What a run reports while it goes: a file of rows, TensorBoard, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from aigc_fast.errors import UserError
from aigc_fast.files import atomic, make_folder


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
    """The rows of a run, in memory, in `log.jsonl` and, when asked, in TensorBoard's files.

    Args:
        folder: the run's folder.
        step: rows after this step are dropped: a run that resumes writes them again.
        tensorboard: whether to write TensorBoard's files, under `tensorboard`.

    Attributes:
        rows: {"step": ..., losses by name} in order.

    Raises:
        UserError: when TensorBoard is asked for and not installed, or the log can't be read or written.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.path = folder / "log.jsonl"
        self._writer = _tensorboard_writer(folder / "tensorboard", step) if tensorboard else None
        self.rows = [row for row in _read_rows(self.path) if row["step"] <= step] if step else []
        with atomic(self.path) as temporary:
            temporary.write_text("".join(_line(row) for row in self.rows), encoding="utf-8")

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one row."""
        row = {"step": step, **values}
        self.rows.append(row)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from None
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def add_image(self, step: int, image: Tensor) -> None:
        """Shows an image (C, H, W) in [-1, 1] in TensorBoard, when that is on."""
        if self._writer is not None:
            self._writer.add_image("samples", (image + 1) / 2, step)

    def close(self) -> None:
        """Flushes what is buffered."""
        if self._writer is not None:
            self._writer.close()


def _line(row: Mapping[str, float]) -> str:
    return json.dumps(row) + "\n"


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        # The last line may be cut where a run was killed.
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        for row in rows:
            _check_row(row)
        return rows
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: the log is damaged ({error}); move it away to go on without its rows") from None


def _check_row(row: dict[str, Any]) -> None:
    if not isinstance(row["step"], int) or not all(isinstance(value, int | float) for value in row.values()):
        raise TypeError("a row holds something else than numbers")


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("TensorBoard is not installed: pip install 'aigc-fast[tensorboard]'") from None
    return SummaryWriter(str(make_folder(folder)), purge_step=step + 1)


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
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
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
        self._progress.stop()

    def show(self, step: int, values: Mapping[str, float], rate: float) -> None:
        """Draws the state after a step."""
        losses = "  ".join(f"{name} {value:.2f}" for name, value in values.items())
        self._progress.update(self._task, completed=step, losses=losses, rate=rate)
