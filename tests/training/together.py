"""Trains in several processes, and compares what they learn with what one learns alone.

A script: it forks, which is only sure in a process without other threads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # by the optimizers, in every process
from conftest import NARROW
from forks import in_processes
from killed import die_at
from torch.optim.optimizer import register_optimizer_step_pre_hook

from aigc_fast.data import ImageDataset, PairDataset, SoundDataset, TextDataset, VideoDataset
from aigc_fast.errors import UserError
from aigc_fast.media import medium_of
from aigc_fast.models import MODELS, CharTokenizer, create
from aigc_fast.models.storage import read_tensors
from aigc_fast.runtime.ranks import RankLostError
from aigc_fast.training import TrainingInterrupted, default_config, train
from aigc_fast.training.parts import SUFFIX, whole

STEPS, BATCH = 6, 7
SETTINGS = {
    "dcgan": {"conditional": True, "shift": 1},
    "mlp-gan": {"loss": "wgan-gp", "critic_steps": 2},
    "vae": {"free_bits": 0.1, "shift": 2},
    "video": {"conditional": True, "free_bits": 0.01},
}


def _data() -> dict[str, object]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=draw, dtype=torch.uint8)
    frames = torch.randint(0, 256, (24, 4, 1, 8, 8), generator=draw, dtype=torch.uint8)
    classes = torch.arange(30) % 3
    words = [f"{first}{second}" * (1 + len(first)) for first in ("a", "b", "cc") for second in "def"]
    texts = tuple("the cat sat on the mat, and the dog on the log.\n"[start:] * 2 for start in range(7))
    names = "a", "b", "c"
    found = (
        ImageDataset(images, classes, names, "noise"),
        SoundDataset(torch.rand(14, 700, generator=draw) - 0.5, classes[:14], names, 8000, "hiss"),
        TextDataset(texts, ("the dog sat on the cat.\n",), CharTokenizer.of(texts, unknown=True), "0" * 64, "sayings"),
        PairDataset(tuple((word, word[::-1]) for word in words), (), CharTokenizer("abcdef"), "0" * 64, "words"),
        VideoDataset(frames[4:], classes[:20], names, frames[:4], classes[:4], 10.0, "flicker"),
    )
    return {dataset.unit: dataset for dataset in found}


DATA = _data()


def run(folder: Path, name: str, **options) -> dict[str, list[torch.Tensor]]:
    """Trains; the gradients of each optimizer's first steps, by its number."""
    settings = dict(SETTINGS.get(name, {}))
    dataset = DATA[medium_of(MODELS[name]).unit]
    torch.manual_seed(1)
    classes = {"num_classes": 3} if settings.pop("conditional", False) else {}
    model = create(name, **dataset.shape, **classes, **NARROW[name]).double()
    chosen = {"steps": STEPS, "batch_size": BATCH, "log_interval": 2, "checkpoint_interval": 4, "sample_interval": 5}
    if name == "char-rnn":
        chosen["chunk"] = 11
    chosen |= {key: options.pop(key) for key in tuple(options) if key in ("steps", "seed", "sharded")}
    found: dict[str, list[torch.Tensor]] = {}

    def keep(optimizer, *_):
        steps = found.setdefault(str(len(optimizer.param_groups[0]["params"])), [])
        if len(steps) < 2:
            parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
            steps.append(torch.cat([_flat(parameter) for parameter in parameters]))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        train(model, dataset, default_config(model, **settings, **chosen), folder, **options)
    finally:
        handle.remove()
    return found


def _flat(parameter: torch.Tensor) -> torch.Tensor:
    return whole(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten().clone()


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_near(found, expected, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=lambda message: f"{what}: {message}")


def compare(place: Path, name: str, counts: tuple[int, ...], **options) -> None:
    """Gradients, rows and files of a family in one process, and in several."""
    kind = "-".join([name, *options])
    for count in (1, *counts):
        folder = place / f"{kind}-{count}"

        def work(rank: int, folder: Path = folder) -> None:
            torch.save(run(folder, name, **options), folder.parent / f"{folder.name}-gradients-{rank}")

        in_processes(place, count, work)
    alone = place / f"{kind}-1"
    gradients = torch.load(place / f"{kind}-1-gradients-0")
    for count in counts:
        folder = place / f"{kind}-{count}"
        for rank in range(count):
            here = torch.load(place / f"{folder.name}-gradients-{rank}")
            assert here.keys() == gradients.keys()
            for key, expected in gradients.items():
                for step, (a, b) in enumerate(zip(here[key], expected, strict=True)):
                    scale = b.abs().max().clamp(min=1e-30)
                    assert_near(a / scale, b / scale, f"{name} in {count}, gradients of step {step}")
        for found, expected in zip(rows_of(folder), rows_of(alone), strict=True):
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                assert abs(found[key] - value) <= 1e-4 * max(1, abs(value)), (
                    f"{name} in {count}: {key} {found} {expected}"
                )
        names = [{path.relative_to(each).as_posix() for path in each.rglob("*")} for each in (folder, alone)]
        steps = [f"checkpoints/step-{step:08d}{SUFFIX}" for step in (0, 4, STEPS) if options]
        assert {name for name in names[0] if SUFFIX not in name} == names[1] | {
            name.replace(SUFFIX, ".safetensors") for name in steps
        }
        assert {name for name in names[0] if name.endswith(SUFFIX)} == set(steps)
    print(kind, flush=True)


def die(place: Path, dead: int, name: str, step: int = 6, left: tuple[int, ...] = (6, 7), **options) -> None:
    """One of three processes is killed: another leaves a checkpoint, from which two go on to the same end."""
    kind = "-".join([name, *options])
    undisturbed, parts = place / f"{kind}-3-whole", place / f"{kind}-3-dies-{dead}-{step}"
    if not undisturbed.exists():
        in_processes(place, 3, lambda rank: run(undisturbed, name, steps=9, **options))

    def work(rank: int) -> None:
        def kill(now, values):
            if rank == dead and now == step:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            run(parts, name, steps=9, callbacks=(kill,), **options)
        except TrainingInterrupted as interrupted:
            (parts / f"told-{rank}").write_text(str(interrupted))
        except RankLostError:
            pass  # the process that leaves the checkpoint tells of it, above

    in_processes(place, 3, work, dies=dead)
    (told,) = parts.glob("told-*")
    newest = max((parts / "checkpoints").glob("*.safetensors"))
    assert newest.name in [f"step-{number:08d}.safetensors" for number in left], newest
    assert told.read_text() == (f"another process has ended; {newest} holds everything to go on: --resume latest"), (
        told.read_text()
    )
    told.unlink()
    in_processes(place, 2, lambda rank: run(parts, name, steps=9, resume="auto", **options))
    assert_same_weights(parts, undisturbed)
    assert [row["step"] for row in rows_of(parts)] == [row["step"] for row in rows_of(undisturbed)]
    print("died", dead, flush=True)


def assert_same_weights(folder: Path, expected: Path) -> None:
    weights = read_tensors(folder / "model.safetensors")[0]
    for key, value in read_tensors(expected / "model.safetensors")[0].items():
        torch.testing.assert_close(weights[key], value, rtol=1e-3, atol=1e-4)


def regroup(place: Path) -> None:
    """A run in parts goes on in other numbers of processes, in one that has the whole, and from there in parts."""
    folder = place / "regrouped"
    for index, (count, sharded) in enumerate([(4, True), (3, True), (1, False), (2, False), (2, True)]):
        options = {"steps": 2 * index + 1, "sharded": sharded, "resume": "auto"}
        in_processes(place, count, lambda rank, options=options: run(folder, "gpt2", **options))
    assert_same_weights(folder, place / "gpt2-sharded-3-whole")
    newest = folder / "checkpoints" / f"step-00000009{SUFFIX}"
    file = max(newest.iterdir())
    content, written = file.read_bytes(), file.stat().st_mtime_ns
    (folder / "model.safetensors").unlink()
    in_processes(place, 2, lambda rank: run(folder, "gpt2", steps=9, sharded=True, resume="latest"))
    assert_same_weights(folder, place / "gpt2-sharded-3-whole")
    assert file.stat().st_mtime_ns == written
    damages = {
        "its checksum does not match": lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        "no such file": file.unlink,
        "is not of the checkpoint": lambda: (newest / "other.safetensors").write_bytes(content),
    }
    for word, damage in damages.items():
        damage()

        def work(rank: int, word: str = word) -> None:
            with pytest.raises(UserError, match=rf"{word}.*; .*step-00000008.safetensors is intact") as raised:
                run(folder, "gpt2", steps=10, sharded=True, resume="latest")
            assert len(str(raised.value).splitlines()) == 1

        in_processes(place, 2, work)
        file.write_bytes(content)
    print("regrouped", flush=True)


def replace(place: Path) -> None:
    """A run in parts takes the place of another, and leaves what is not a run's."""
    folder = place / "gpt2-sharded-2"
    theirs = folder / "checkpoints" / f"step-00000099{SUFFIX}"
    theirs.mkdir()
    (theirs / "notes.txt").write_text("somebody's")

    def refused(rank: int) -> None:
        with pytest.raises(UserError, match="did not write this file"):
            run(folder, "gpt2", sharded=True, seed=2, overwrite=True)

    in_processes(place, 2, refused)
    (theirs / "notes.txt").unlink()
    in_processes(place, 3, lambda rank: run(folder, "gpt2", steps=1, sharded=True, seed=2, overwrite=True))
    found = {path.name for path in (folder / "checkpoints").iterdir()}
    assert found == {f"step-0000000{step}{suffix}" for step in (0, 1) for suffix in (".safetensors", SUFFIX)}
    print("replaced", flush=True)


def refuse(place: Path) -> None:
    """What the first process refuses, all do, and nothing is written."""
    folder = place / "mlp-gan-1"
    before = sorted(folder.rglob("*"))

    def work(rank: int) -> None:
        for options, word in (({}, "holds a run already"), ({"overwrite": True, "steps": 1}, "at least 2 steps")):
            with pytest.raises(UserError, match=word):
                run(folder, "mlp-gan", **options)

    in_processes(place, 2, work)
    assert sorted(folder.rglob("*")) == before
    print("refused", flush=True)


def kill(place: Path, dead: int, stride: int) -> None:
    """One of two processes is killed before changes of the folder, as that of a checkpoint's parts; one goes on."""
    whole = place / "killed-whole"
    options = {"steps": 3, "sharded": True, "resume": "auto"}
    in_processes(place, 2, lambda rank: run(whole, "gpt2", **options))
    change, ended = 1, place / f"ended-{dead}"
    while not ended.exists():
        folder = place / f"killed-{dead}-{change}"

        def work(rank: int, folder: Path = folder, change: int = change) -> None:
            if rank == dead:
                die_at(change, folder)
            try:
                run(folder, "gpt2", **options)
            except (TrainingInterrupted, RankLostError):
                assert rank != dead
            if rank == dead:
                ended.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        in_processes(place, 2, work, dies=dead)
        in_processes(place, 1, lambda rank, folder=folder: run(folder, "gpt2", **options))
        assert_same_weights(folder, whole)
        assert rows_of(folder)[-1]["step"] == 3
        shutil.rmtree(folder)
        change += stride
    assert change > 2, "no change was seen"
    print("killed", dead, flush=True)


def main(place: Path) -> None:
    for name in MODELS:
        compare(place, name, (2, 4) if name in ("dcgan", "gpt2") else (3,))
    refuse(place)
    die(place, 0, "dcgan")
    die(place, 2, "char-rnn")


def main_in_parts(place: Path) -> None:
    compare(place, "gpt2", (2, 4), sharded=True)
    compare(place, "llama", (3,), sharded=True)
    die(place, 0, "gpt2", left=(4,), sharded=True)
    die(place, 2, "gpt2", step=2, left=(0,), sharded=True)
    regroup(place)
    replace(place)


def main_killed(place: Path) -> None:
    # Two processes take long to begin: at every seventh change of the many that the first makes.
    kill(place, 0, 7)
    kill(place, 1, 1)


if __name__ == "__main__":
    {"whole": main, "parts": main_in_parts, "killed": main_killed}[sys.argv[2]](Path(sys.argv[1]))
