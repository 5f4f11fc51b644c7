"""Runs cases: first the gate, then the ways in turn; and keeps what was found."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from aigc_fast.bench.calls import Case, label
from aigc_fast.bench.cases import CASES, WHOLE
from aigc_fast.bench.contest import OURS, PYTORCH, Contest
from aigc_fast.bench.decode import costs, generated
from aigc_fast.bench.machine import CPU, LIMITS, described, limits_text, machine_text, placed, probe
from aigc_fast.bench.models import whole_model
from aigc_fast.bench.ops import attention, convolution, dropout, linear, norm, recursion, reparameterize
from aigc_fast.bench.parity import ParityError
from aigc_fast.bench.peers import versions
from aigc_fast.bench.recurrent import sampled, sequences
from aigc_fast.bench.seq2seq import answering
from aigc_fast.bench.typical import example
from aigc_fast.errors import UserError
from aigc_fast.files import atomic
from aigc_fast.runtime.machine import description
from aigc_fast.runtime.timing import Timing, rounds_of, summary

CONTESTS: dict[str, Callable[[Case], Contest]] = {
    "conv_transpose": convolution,
    "adversarial": convolution,
    "attention": attention,
    "linear": linear,
    "norm": norm,
    "recursion": recursion,
    "recurrent": sequences,
    "sampling": sampled,
    "decode": generated,
    "decode_costs": costs,
    "reparameterize": reparameterize,
    "dropout": dropout,
    "examples": example,
    "models": whole_model,
    "seq2seq": answering,
}
_CASES = {case.label: case for case in CASES}
# Seconds that thread pools take at most, after their work, to let go of their cores.
_PAUSE = 0.01
_LEAST_ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """What was found of a case.

    Attributes:
        op: the case's, as are name, dtype and mode.
        ours: milliseconds of each of our ways: of each layout.
        peers: milliseconds of each peer.
        ratio: how many times faster our fastest way is than the fastest peer, and the spread over the rounds.
        error: the worst relative error against float64.
        own_error: PyTorch's.
        share: of the machine's limit that our fastest way reaches; None where none is told.
        limit: which limit.
        absent: peers that would have taken part and are not installed.
        peak: the most memory that ours took, over what it keeps; None where that was not measured.
        operations: the case's, as is nbytes; None where nobody counts them.
    """

    op: str
    name: str
    dtype: str
    mode: str
    ours: dict[str, Timing]
    peers: dict[str, Timing]
    ratio: Timing
    error: float
    own_error: float
    share: float | None = None
    limit: str | None = None
    absent: tuple[str, ...] = ()
    peak: float | None = None
    operations: float | None = None
    nbytes: float | None = None

    @property
    def label(self) -> str:
        """The case's."""
        return label(self.op, self.name, self.dtype, self.mode)

    @property
    def way(self) -> str:
        """Our fastest way."""
        return _fastest(self.ours)

    @property
    def peer(self) -> str:
        """The fastest peer."""
        return _fastest(self.peers)

    @property
    def in_one_layout(self) -> float:
        """The least ratio to PyTorch in the same layout: a model is in one, and could fall back to PyTorch there.

        Infinite where PyTorch takes no part.
        """
        pairs = [(self.peers.get(name.replace(OURS, PYTORCH)), ours) for name, ours in self.ours.items()]
        return min((stock.median / ours.median for stock, ours in pairs if stock), default=math.inf)


def _fastest(timings: Mapping[str, Timing]) -> str:
    return min(timings, key=lambda name: timings[name].median)


@dataclass(frozen=True)
class Result:
    """Rows of one run, the machine that they are of, and what it could do meanwhile.

    Attributes:
        complete: whether all cases were measured that were asked for; False where somebody interrupted it.
    """

    machine: dict[str, Any]
    limits: dict[str, float]
    rows: tuple[Row, ...]
    complete: bool = True

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, whole or not at all.

        Raises:
            UserError: when the file can't be written.
        """
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Result:
        """What `write` wrote.

        Raises:
            UserError: when the file is missing or holds something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = tuple(map(_row, found["rows"]))
            result = Result(found["machine"], found["limits"], rows, found.get("complete", True))
            _check(result)
            return result
        except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: holds no result of a bench ({error})") from None


def _check(result: Result) -> None:
    """Refuses what `write` would not have written, by one of the errors that `read` expects."""
    machine_text(result.machine)
    limits_text(result.limits)
    _check_kinds("machine", result.machine["peers"], dict)
    _check_kinds("date", result.machine["date"], str)
    _check_numbers("limits", result.limits.values(), above=0)
    for row in result.rows:
        for name in ("op", "name", "dtype", "mode"):
            _check_kinds(name, getattr(row, name), str)
        _check_kinds("limit", row.limit, (str, type(None)))
        if row.share is not None and row.limit not in LIMITS:
            raise ValueError(f"{row.label}: has a share of {row.limit!r:.40}")
        if not (row.ours and row.peers):
            raise ValueError(f"{row.label}: lacks its times")
        for timing in (*row.ours.values(), *row.peers.values(), row.ratio):
            _check_numbers(row.label, astuple(timing), above=0)
        counts = (row.share, row.peak, row.operations, row.nbytes)
        _check_numbers(row.label, [row.error, row.own_error, *(count for count in counts if count is not None)])


def _check_kinds(name: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    if not isinstance(value, kinds):
        raise ValueError(f"{name} is {value!r:.40}")


def _check_numbers(name: str, values: Iterable[Any], above: float = -math.ulp(0)) -> None:
    for value in values:
        if type(value) not in (int, float) or not above < float(value) < math.inf:
            raise ValueError(f"{name} has a number {value!r:.40}")


def _row(found: Mapping[str, Any]) -> Row:
    ours, peers = ({name: Timing(**timing) for name, timing in found[of].items()} for of in ("ours", "peers"))
    row = Row(
        **{**found, "ours": ours, "peers": peers, "ratio": Timing(**found["ratio"]), "absent": tuple(found["absent"])}
    )
    case = _CASES.get(row.label)
    if row.operations is not None or case is None:
        return row
    # Of results that are older than these counts.
    return replace(row, operations=case.operations, nbytes=case.nbytes)


def run(
    cases: Iterable[Case],
    seconds: float = 2.0,
    tell: Callable[[Row | str], None] = lambda row: None,
    device: torch.device = CPU,
) -> Result:
    """Measures cases, one after the other.

    Args:
        cases: what to measure; those that no peer is installed for are left out.
        seconds: about how long to measure each.
        tell: called with each row as it is found, or with a line about a case that has none.
        device: where to; whole models are measured on the CPU alone.

    Returns:
        The rows; those until now where it is interrupted after the first one.

    Raises:
        ParityError: when a result is too far from float64's; nothing more is timed.
    """
    with placed(device):
        limits = probe()
    rows, complete = [], True
    try:
        for case in cases:
            found = _found(case, seconds, limits, device)
            tell(found)
            if isinstance(found, Row):
                rows.append(found)
    except KeyboardInterrupt:
        if not rows:
            raise
        complete = False
    machine = {**description(), **described(device), "date": _today(), "peers": versions()}
    return Result(machine, limits, tuple(rows), complete)


def _found(case: Case, seconds: float, limits: dict[str, float], device: torch.device) -> Row | str:
    """The case's row, or why it has none."""
    if device.type != "cpu" and case.op in WHOLE:
        return f"{case.label}: is measured on the CPU alone"
    torch.manual_seed(0)
    with placed(device):
        contest = CONTESTS[case.op](case)
    if not contest.peers:
        return f"{case.label}: no peer is installed"
    return measured(case, contest, seconds, limits, device)


def merged(results: Sequence[Result]) -> Result:
    """The rows of several results, as of the first one's machine."""
    rows = tuple(row for result in results for row in result.rows)
    return replace(results[0], rows=rows, complete=all(result.complete for result in results))


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def measured(case: Case, contest: Contest, seconds: float, limits: dict[str, float], device: torch.device = CPU) -> Row:
    """The row of a contest.

    Raises:
        ParityError: when a result of ours is too far from float64's.
    """
    try:
        with placed(device):
            error, own_error = contest.gate()
    except ParityError as found:
        raise ParityError(f"{case.label}: {found}") from None
    rounds = rounds_of({**contest.ours, **contest.peers}, seconds, _PAUSE, _LEAST_ROUNDS)
    return row_of(case, contest, rounds, (error, own_error), limits)


def row_of(
    case: Case,
    contest: Contest,
    rounds: Mapping[str, list[list[float]]],
    errors: tuple[float, float],
    limits: dict[str, float],
) -> Row:
    """The row of milliseconds: of each way, in each round.

    The ratio of a round is that of its medians; layouts are chosen by the medians of all, for ours as for the peers.
    """
    timings = {name: summary(sample for found in taken for sample in found) for name, taken in rounds.items()}
    ours, peers = ({name: timings[name] for name in ways} for ways in (contest.ours, contest.peers))
    way, peer = _fastest(ours), _fastest(peers)
    ratios = [
        statistics.median(theirs) / statistics.median(mine)
        for mine, theirs in zip(rounds[way], rounds[peer], strict=True)
    ]
    work = contest.work
    return Row(
        *(case.op, case.name, case.dtype, case.mode),
        ours=ours,
        peers=peers,
        ratio=summary(ratios),
        error=errors[0],
        own_error=errors[1],
        share=None if work is None else work.share(timings[way].median, limits),
        limit=None if work is None else work.limit,
        absent=contest.absent,
        peak=None if contest.peak is None else contest.peak(),
        operations=case.operations,
        nbytes=case.nbytes,
    )
