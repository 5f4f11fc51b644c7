"""Trains in several processes, and compares what they learn with what one learns alone.

A script: it forks, which is only sure in a process without other threads.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # by the optimizers, in every process
from conftest import NARROW
from forks import in_processes
from torch.optim.optimizer import register_optimizer_step_pre_hook

from aigc_fast.data import ImageDataset, PairDataset, SoundDataset, TextDataset, VideoDataset
from aigc_fast.errors import UserError
from aigc_fast.media import medium_of
from aigc_fast.models import MODELS, CharTokenizer, create
from aigc_fast.models.storage import read_tensors
from aigc_fast.runtime.ranks import RankLostError
from aigc_fast.training import TrainingInterrupted, default_config, train

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
    chosen |= {key: options.pop(key) for key in tuple(options) if key in ("steps", "seed")}
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
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten().clone()


def rows_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_near(found, expected, what: str) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, msg=lambda message: f"{what}: {message}")


def compare(place: Path, name: str, counts: tuple[int, ...]) -> None:
    """Gradients, rows and files of a family in one process, and in several."""
    for count in (1, *counts):
        folder = place / f"{name}-{count}"

        def work(rank: int, folder: Path = folder) -> None:
            torch.save(run(folder, name), folder.parent / f"{folder.name}-gradients-{rank}")

        in_processes(place, count, work)
    alone = place / f"{name}-1"
    gradients = torch.load(place / f"{name}-1-gradients-0")
    for count in counts:
        folder = place / f"{name}-{count}"
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
        assert names[0] == names[1]
    print(name, flush=True)


def die(place: Path, dead: int, name: str) -> None:
    """One of three processes is killed: another leaves a checkpoint, from which two go on to the same end."""
    whole, parts = place / f"{name}-3-whole", place / f"{name}-3-dies-{dead}"
    in_processes(place, 3, lambda rank: run(whole, name, steps=9))

    def work(rank: int) -> None:
        def kill(step, values):
            if rank == dead and step == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            run(parts, name, steps=9, callbacks=(kill,))
        except TrainingInterrupted as interrupted:
            (parts / f"told-{rank}").write_text(str(interrupted))
        except RankLostError:
            pass

    in_processes(place, 3, work, dies=dead)
    (told,) = parts.glob("told-*")
    newest = max((parts / "checkpoints").iterdir())
    assert newest.name in ("step-00000006.safetensors", "step-00000007.safetensors"), newest
    assert told.read_text() == (f"another process has ended; {newest} holds everything to go on: --resume latest"), (
        told.read_text()
    )
    told.unlink()
    in_processes(place, 2, lambda rank: run(parts, name, steps=9, resume="auto"))
    for key, expected in read_tensors(whole / "model.safetensors")[0].items():
        found = read_tensors(parts / "model.safetensors")[0][key]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert [row["step"] for row in rows_of(parts)] == [row["step"] for row in rows_of(whole)]
    print("died", dead, flush=True)


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


def main(place: Path) -> None:
    for name in MODELS:
        compare(place, name, (2, 4) if name in ("dcgan", "gpt2") else (3,))
    refuse(place)
    die(place, 0, "dcgan")
    die(place, 2, "char-rnn")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
