"""Work in several processes that talk by gloo, for scripts: to fork is only sure in a process without other threads."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # what the optimizers and DTensors import, once for all processes
import torch.distributed as dist


def in_processes(place: Path, count: int, work: Callable[[int], None], dies: int | None = None) -> None:
    """Does the work in so many processes, of which one may be killed; no other may fail."""
    meeting = place / f"meeting-{len(list(place.iterdir()))}"
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            _in_child(meeting, rank, count, work)
        children.append(child)
    for rank, child in enumerate(children):
        _, status = os.waitpid(child, 0)
        expected = signal.SIGKILL if rank == dies else 0
        assert status == expected, f"process {rank} of {count} ended with {status}"


def _in_child(meeting: Path, rank: int, count: int, work: Callable[[int], None]) -> None:
    try:
        torch.set_num_threads(1)
        if count > 1:
            dist.init_process_group("gloo", store=dist.FileStore(str(meeting), count), rank=rank, world_size=count)
        work(rank)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
