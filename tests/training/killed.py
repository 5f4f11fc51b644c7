"""Kills runs at every step that changes a folder, and checks that each leaves one that can be used.

A script: it forks, which is only sure in a process without other threads.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import torch

from aigc_fast.data import ImageDataset
from aigc_fast.errors import UserError
from aigc_fast.media import medium_of
from aigc_fast.media.shards import Order, Shards
from aigc_fast.models import create, load
from aigc_fast.training import default_config, train

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")
_FOREIGN = ("samples/step-results.png", "checkpoints/step-best.safetensors", "notes.txt")

generator = torch.Generator().manual_seed(0)
DATA = ImageDataset(torch.randint(0, 256, (24, 1, 8, 8), generator=generator, dtype=torch.uint8), None, (), "noise")


def run(folder: Path, seed: int, steps: int = 3, **options) -> torch.Tensor:
    """Trains; the weights, all in one."""
    torch.manual_seed(seed)
    model = create("mlp-gan", image_shape=(1, 8, 8), hidden=2, latent_dim=2)
    intervals = {"sample_interval": 1, "checkpoint_interval": 2, "log_interval": 1, "keep_checkpoints": 2}
    config = default_config(model, steps=steps, batch_size=8, seed=seed, **intervals)
    result = train(model, DATA, config, folder, **options)
    return torch.cat([value.flatten().float() for value in result.model.state_dict().values()])


def die_at(change: int, folder: Path) -> None:
    """Kills this process right before the change of `folder` of that number, from 1."""
    left = [change]

    def count(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and arguments[1].strip("rbt") != ""
        makes = event == "open" and arguments[1] is None and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        inside = arguments and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(folder))
        if inside and (writes or makes or event in _CHANGES):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def in_a_process(call) -> bool:
    """Whether the call, in a process of its own, came to its end; it may be killed, but not fail."""
    child = os.fork()
    if child == 0:
        try:
            call()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "failed"
    return True


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but what is hidden."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if "/." not in f"/{name}"}


class Scenario:
    """A run in a folder that was prepared for it.

    Args:
        place: an empty folder to work in.
        prepared: what the run's folder holds before.
        seed: of the run.
        steps: of the run.
        options: of the run, by its folder.
    """

    def __init__(self, place: Path, prepared: Path, seed: int, steps: int, options) -> None:
        self.prepared, self.folder = prepared, place / "run"
        self.settings, self.options = {"seed": seed, "steps": steps}, options
        self.before = tree(prepared)
        self.foreign = {name: self.before[name] for name in _FOREIGN}
        whole = place / "whole"
        shutil.copytree(prepared, whole)
        self.weights = self.begin(whole)
        self.after = tree(whole)

    def begin(self, folder: Path) -> torch.Tensor:
        return run(folder, **self.settings, **self.options(folder))

    def killed(self, change: int) -> bool:
        """Whether the run was killed before that change, rather than being done with fewer."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.prepared, self.folder)
        return not in_a_process(lambda: (die_at(change, self.folder), self.begin(self.folder)))

    def check(self) -> None:
        """The old run is whole, or the new one can go on and ends as if nothing had been."""
        there = tree(self.folder)
        assert {name: there[name] for name in _FOREIGN} == self.foreign
        if "model.safetensors" in self.before:
            load(self.folder / "model.safetensors")
            if {name: there.get(name) for name in self.before} == self.before:
                return
        try:
            weights = run(self.folder, **self.settings, resume="latest")
        except UserError as error:
            if "no checkpoint" in str(error) and not any("checkpoints/step-0" in name for name in there):
                return
            raise
        assert torch.equal(weights, self.weights)
        ended = tree(self.folder)
        assert ended.keys() == self.after.keys()
        assert ended["log.jsonl"] == self.after["log.jsonl"]


def kill_generation(place: Path) -> None:
    """Shards that another process goes on with are those of one that was not killed."""
    torch.manual_seed(0)
    model = create("vae", image_shape=(1, 4, 4), hidden=3, latent_dim=2)

    def fill(folder: Path) -> None:
        found = Shards(folder, model, medium_of(model), Order(70, size=50))
        found.write(found.missing())
        assert found.write_index()

    def killed(change: int) -> bool:
        return not in_a_process(lambda: (die_at(change, folder), fill(folder)))

    whole, folder, change = place / "whole", place / "shards", 1
    fill(whole)
    while killed(change):
        assert in_a_process(lambda: fill(folder)), f"shards, killed before change {change}"
        assert tree(folder) == tree(whole), f"shards, killed before change {change}"
        shutil.rmtree(folder)
        change += 1
    print("shards", change - 1, flush=True)


def main(place: Path) -> None:
    """Kills a first run, one that replaces another, one that goes on from an earlier checkpoint, and one of shards."""
    torch.set_num_threads(1)
    kill_generation(place)
    fresh, finished = place / "prepared" / "fresh", place / "prepared" / "finished"
    for folder in (fresh, finished):
        for name in _FOREIGN:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("somebody's")
    run(finished, 1, steps=4)
    earlier = "checkpoints/step-00000002.safetensors"
    for name, *scenario in (
        ("fresh", fresh, 2, 3, lambda folder: {}),
        ("overwrite", finished, 2, 3, lambda folder: {"overwrite": True}),
        ("earlier", finished, 1, 5, lambda folder: {"resume": folder / earlier}),
    ):
        (place / name).mkdir()
        tried = Scenario(place / name, *scenario)
        change = 1
        while tried.killed(change):
            assert in_a_process(tried.check), f"{name}, killed before change {change}"
            change += 1
        print(name, change - 1, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
