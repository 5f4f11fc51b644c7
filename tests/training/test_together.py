"""Training in several processes: what they learn is what one learns alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aigc_fast.models import MODELS, create, load, save
from aigc_fast.training.parts import can_write_parts

HERE = Path(__file__).parent
TESTS = HERE.parent

needs_parts = pytest.mark.skipif(
    sys.platform == "win32" or not can_write_parts(), reason="no fork, or a torch that writes no safetensors in parts"
)


TORCHRUN = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"


def process(*command, **variables) -> subprocess.CompletedProcess[str]:
    paths = [str(TESTS), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_gradients_logs_and_checkpoints_of_every_family_are_those_of_one_process(tmp_path):
    found = process(HERE / "together.py", tmp_path, "whole")
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split("\n") == [*MODELS, "refused", "died 0", "died 2", ""]


@pytest.mark.slow
@needs_parts
def test_models_whose_weights_lie_in_parts_learn_the_same_and_go_on_in_any_number_of_processes(tmp_path):
    found = process(HERE / "together.py", tmp_path, "parts")
    assert found.returncode == 0, found.stderr[-3000:]
    done = ["gpt2-sharded", "llama-sharded", "died 0", "died 2", "regrouped", "replaced", ""]
    assert found.stdout.split("\n") == done


@pytest.mark.slow
@needs_parts
def test_a_process_that_is_killed_at_any_change_of_the_folder_leaves_a_run_that_can_go_on(tmp_path):
    found = process(HERE / "together.py", tmp_path, "killed")
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split("\n") == ["killed 0", "killed 1", ""]


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_the_command_line_trains_under_torchrun_and_refuses_in_one_line(tmp_path):
    def command(*options):
        train = "-m", "aigc_fast.cli", "train", "mlp-gan", "--hidden", "8", "--device", "cpu", "--batch-size", "8"
        return process(*TORCHRUN, *train, "--sample-interval", "0", "--out", tmp_path / "run", *options)

    first = command("--steps", "3")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("3 steps on 1797 images") == 1
    taken = command("--steps", "3")
    assert taken.returncode != 0
    assert taken.stderr.count("aigc-fast: error:") == 1
    assert "holds a run already" in taken.stderr
    assert load(tmp_path / "run" / "model.safetensors").metadata["step"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
def test_the_command_line_generates_under_torchrun_what_one_process_does_and_goes_on(tmp_path):
    torch.manual_seed(0)
    save(create("vae", image_shape=(1, 4, 4), hidden=3, latent_dim=2), tmp_path / "model")

    def command(*launcher, folder, count):
        order = "--what", "shards", "--count", count, "--shard-size", 50, "--device", "cpu", "--out", tmp_path / folder
        found = process(*launcher, "-m", "aigc_fast.cli", "generate", tmp_path / "model", *order)
        assert found.returncode == 0, found.stderr[-3000:]
        return {path.name: path.read_bytes() for path in (tmp_path / folder).glob("shard-*.tar")}, found.stdout

    alone, _ = command(folder="alone", count=170)
    assert len(alone) == 4
    for count in (120, 170):
        together, told = command(*TORCHRUN, folder="together", count=count)
        assert told.count("Wrote") == 1
    assert together == alone
