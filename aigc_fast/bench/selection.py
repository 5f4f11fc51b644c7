"""Which cases are measured, and where what was found of each op is kept."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from aigc_fast.bench.calls import Case
from aigc_fast.bench.cases import CASES, WHOLE
from aigc_fast.bench.machine import CPU, described
from aigc_fast.runtime.machine import description


def selected(
    ops: Collection[str] = (), only: str = "", dtypes: Collection[str] = (), models: bool = False, every: bool = False
) -> list[Case]:
    """The cases that are asked for, in their order.

    Args:
        ops: these ops alone, with all of their cases; none means the ops that are not whole models.
        only: a part of their labels.
        dtypes: these alone; none means all.
        models: whole models too.
        every: all cases of the ops rather than those that the README shows.
    """
    wanted = set(ops) or {case.op for case in CASES if every or case.op not in WHOLE}
    wanted |= set(WHOLE) if models else set()
    return [
        case
        for case in CASES
        if case.op in wanted
        and (every or only or case.in_readme or case.op in ops)
        and only in case.label
        and (not dtypes or case.dtype in dtypes)
    ]


def kept_in(folder: Path, cases: Sequence[Case], device: torch.device = CPU) -> dict[Path, list[Case]]:
    """The cases by the file in a folder that their results are kept in: one for each op and machine or device."""
    machine, found = description(), {}
    own = f"{machine['processor']} {machine['level']} {machine['threads']} threads"
    for case in cases:
        words = f"{case.op} {described(device).get('device', own)}"
        found.setdefault(folder / ("-".join(re.findall(r"[\w.]+", words.lower())) + ".json"), []).append(case)
    return found
