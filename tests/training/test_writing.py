"""Disks that take no more: one line, and what stood there before stands there still."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from aigc_fast.errors import UserError
from aigc_fast.files import append
from aigc_fast.generation import Provenance, write_png, write_sound, write_text, write_wav
from aigc_fast.models import create, save
from aigc_fast.models.storage import write_tensors
from aigc_fast.page import Page
from aigc_fast.training.folder import RunFolder
from aigc_fast.training.log import EventFile

RECORD = Provenance("vae", 0)


@contextmanager
def full(size):
    """Inside the block no file grows beyond so many bytes, as on a full disk; pytest writes outside of it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def events(path):
    file = EventFile(RunFolder(path.parent), 1)
    for step in range(1000):
        file.add_scalars(step, {"loss": 1.0})


WRITERS = {
    "checkpoint.safetensors": lambda path: write_tensors(path, {"a": torch.zeros(5000)}, {}),
    "model.safetensors": lambda path: save(create("vae", hidden=8), path),
    "image.png": lambda path: write_png(path, torch.rand(3, 99, 99), RECORD),
    "sound.wav": lambda path: write_wav(path, torch.rand(5000), 8000, RECORD),
    "text.txt": lambda path: write_text(path, "x" * 5000, RECORD),
    "pair.wav": lambda path: write_sound(path, torch.rand(5000), 8000, RECORD),
    "index.html": lambda path: Page("title", "x" * 5000).write(path),
    "log.jsonl": lambda path: append(path, b"x" * 5000),
    "events": events,
}


@pytest.mark.parametrize("name", list(WRITERS))
@pytest.mark.parametrize("size", [0, 100, 1500])
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, name, size):
    path = tmp_path / name
    path.write_bytes(b"old")
    with full(size), pytest.raises(UserError) as caught:
        WRITERS[name](path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("cannot write")
    if name not in ("log.jsonl", "events"):
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == [name]


def test_a_disk_that_tells_only_at_the_end_is_heard(tmp_path, monkeypatch):
    """As quotas and network file systems do."""

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        write_tensors(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("size", [300, 6000])
def test_a_run_on_a_full_disk_leaves_what_was_there(run, tmp_path, snapshot, overwrite, size):
    run(tmp_path)
    before = snapshot(tmp_path)
    options = {"overwrite": True, "seed": 3} if overwrite else {"resume": True, "steps": 20}
    with full(size), pytest.raises(UserError, match="cannot write"):
        run(tmp_path, sample_interval=1, log_interval=1, **options)
    after = snapshot(tmp_path)
    kept = {name: value for name, value in after.items() if name in before and name != "log.jsonl"}
    assert kept == {name: value for name, value in before.items() if name != "log.jsonl"}
    if overwrite:
        assert after == before


def test_the_command_line_says_so_in_one_line(tmp_path):
    """A process of its own: stderr is looked at as a whole, threads' words included."""
    code = (
        "import resource, sys\n"
        "from aigc_fast.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))\n"
        "main()"
    )
    args = ["train", "mlp-gan", "--hidden", "64", "--steps", "30", "--batch-size", "8", "--tensorboard"]
    args += ["--sample-interval", "0", "--checkpoint-interval", "20", "--out", "run"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *args],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("aigc-fast: error: cannot write run/checkpoints/step-00000020.safetensors: ")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is full")
def test_a_full_device_is_one_line():
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left on device"):
        append(Path("/dev/full"), b"x")
