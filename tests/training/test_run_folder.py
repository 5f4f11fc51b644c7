"""What a run's folder holds: whose files they are, and what may become of them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aigc_fast.errors import UserError
from aigc_fast.models import load
from aigc_fast.training.folder import STAGING, RunFolder

FOREIGN = {
    "samples/step-results.png": b"a plot",
    "samples/step-7.png": b"another",
    "checkpoints/step-best.safetensors": b"weights",
    "checkpoints/best.safetensors": b"weights",
    "tensorboard/events.out.tfevents.1.mine": b"events",
    "notes.txt": b"notes",
    "index.html": b"page",
}


def put(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def assert_there(folder, files):
    assert {name: (folder / name).read_bytes() for name in files} == files


def dies(step, values):
    if step == 4:
        raise RuntimeError("killed")


def test_a_killed_run_leaves_one_that_can_be_used(tmp_path):
    script = Path(__file__).with_name("killed.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = {name: int(count) for name, count in map(str.split, done.stdout.splitlines())}
    assert counts.keys() == {"fresh", "overwrite", "earlier", "shards"}
    assert min(counts.values()) > 15


@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_s_files_stay(run, tmp_path, overwrite):
    put(tmp_path, FOREIGN)
    for settings in ({}, {"resume": True, "steps": 14}, {"overwrite": True, "learning_rate": 0.1}):
        run(tmp_path, sample_interval=4, **{"overwrite": overwrite, **settings})
        assert_there(tmp_path, FOREIGN)
    assert not (tmp_path / STAGING).exists()


@pytest.mark.parametrize(
    "name",
    [
        "log.jsonl",
        "model.safetensors",
        "samples/step-00000004.png",
        "samples/step-00000099.wav",
        "checkpoints/step-00000005.safetensors",
    ],
)
@pytest.mark.parametrize("content", [b"mine", b"", b'{"mine": 1}\n'])
def test_somebody_s_files_in_the_way_are_named_and_stay(run, tmp_path, name, content):
    put(tmp_path, {name: content})
    with pytest.raises(UserError, match=rf"{tmp_path}.*: .* --overwrite replaces it"):
        run(tmp_path, sample_interval=4)
    assert_there(tmp_path, {name: content})
    if name == "log.jsonl" and not content:
        return
    with pytest.raises(UserError, match=rf"{tmp_path / name}: aigc_fast did not write this file"):
        run(tmp_path, sample_interval=4, overwrite=True)
    assert_there(tmp_path, {name: content})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_an_old_run_is_whole_until_the_new_one_has_a_checkpoint(run, tmp_path, snapshot):
    run(tmp_path, sample_interval=4)
    before = snapshot(tmp_path)
    seen = []

    def look(step, values):
        now = snapshot(tmp_path)
        seen.append({name: now.get(name) for name in before} == before)

    run(tmp_path, seed=7, overwrite=True, sample_interval=2, log_interval=1, callbacks=(look,), tensorboard=True)
    assert seen == [True] * 5 + [False] * 7
    assert load(tmp_path / "model.safetensors").metadata["training"]["seed"] == 7
    after = snapshot(tmp_path)
    assert {name.partition("/")[0] for name in after} == {
        "model.safetensors",
        "log.jsonl",
        "checkpoints",
        "samples",
        "tensorboard",
    }
    assert sorted(name for name in after if name.startswith("samples")) == [
        f"samples/step-{step:08d}.png" for step in (2, 4, 6, 8, 10, 12)
    ]
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [*range(1, 13)]


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": 1e30, "name": "conv-vae"}, {"batch_size": 1, "name": "dcgan"}, {"callbacks": (dies,)}],
    ids=["diverges", "refused", "fails"],
)
def test_a_new_run_that_fails_leaves_the_old_one(run, tmp_path, snapshot, settings):
    run(tmp_path, sample_interval=4)
    before = snapshot(tmp_path)
    with pytest.raises((UserError, RuntimeError)):
        run(tmp_path, overwrite=True, sample_interval=1, log_interval=1, **settings)
    assert snapshot(tmp_path) == before


def test_a_run_without_a_checkpoint_is_replaced_only_when_asked(run, tmp_path, snapshot):
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, sample_interval=2, log_interval=1, callbacks=(dies,))
    before = snapshot(tmp_path)
    assert sorted(before) == ["log.jsonl", "samples/step-00000002.png", "samples/step-00000004.png"]
    with pytest.raises(UserError, match=r"log\.jsonl: is there already: --overwrite replaces it"):
        run(tmp_path)
    assert snapshot(tmp_path) == before
    run(tmp_path, overwrite=True)
    assert not list((tmp_path / "samples").iterdir())


def test_going_on_from_an_earlier_checkpoint_keeps_the_later_ones_until_there_is_another(run, tmp_path, snapshot):
    whole = run(tmp_path, sample_interval=3)
    before = snapshot(tmp_path)
    earlier = tmp_path / "checkpoints" / "step-00000005.safetensors"
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, resume=earlier, sample_interval=3, callbacks=(lambda step, values: dies(step - 3, values),))
    assert snapshot(tmp_path) == before
    again = run(tmp_path, resume=earlier, sample_interval=3)
    assert again.rows == whole.rows
    after = snapshot(tmp_path)
    assert after.keys() == before.keys()
    assert after["log.jsonl"] == before["log.jsonl"]


def test_a_checkpoint_from_elsewhere_does_not_take_a_folder_that_holds_another_run(run, tmp_path, snapshot):
    run(tmp_path / "a")
    run(tmp_path / "b", seed=9, sample_interval=3)
    before = snapshot(tmp_path)
    checkpoint = tmp_path / "a" / "checkpoints" / "step-00000010.safetensors"
    with pytest.raises(UserError, match=r"b: holds a run already: --resume latest .*, --overwrite .*--out"):
        run(tmp_path / "b", resume=checkpoint)
    assert snapshot(tmp_path) == before
    result = run(tmp_path / "b", resume=checkpoint, overwrite=True)
    assert [row["step"] for row in result.rows] == [12]
    assert sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir()) == ["step-00000012.safetensors"]
    assert not list((tmp_path / "b" / "samples").iterdir())


@pytest.mark.parametrize("content", [b"[", b"7", b'[{"a": 1}]', b"[" * 100_000])
def test_a_damaged_list_of_files_to_give_way_is_named(run, tmp_path, content):
    run(tmp_path)
    put(tmp_path, {f"{STAGING}/takes-place-of.json": content})
    with pytest.raises(UserError, match=r"takes-place-of\.json: damaged .*: move .* away"):
        run(tmp_path, resume=True)


def test_a_list_of_files_to_give_way_reaches_no_other_files(tmp_path):
    put(tmp_path, {"precious": b"1", "run/notes": b"2"})
    names = ["../precious", "notes", "samples/../notes", "checkpoints/step-00000001.safetensors/../../notes"]
    put(tmp_path, {f"run/{STAGING}/takes-place-of.json": json.dumps(names).encode()})
    RunFolder(tmp_path / "run").complete()
    assert_there(tmp_path, {"precious": b"1", "run/notes": b"2"})
    assert not (tmp_path / "run" / STAGING).exists()


def test_checkpoints_that_are_not_the_program_s_are_neither_dropped_nor_gone_on_from(run, tmp_path):
    put(tmp_path, {"checkpoints/step-99999999-best.safetensors": b"mine", "checkpoints/step-0.safetensors": b"mine"})
    run(tmp_path, checkpoint_interval=1, keep_checkpoints=1)
    run(tmp_path, resume=True, steps=14, keep_checkpoints=1)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == [
        "step-0.safetensors",
        "step-00000014.safetensors",
        "step-99999999-best.safetensors",
    ]


def test_the_model_file_holds_the_classes_and_what_was_left_out(run, dataset, tmp_path):
    noted = dataclasses.replace(dataset)
    object.__setattr__(noted, "notes", ("two pictures were left out",))
    run(tmp_path, data=noted, conditional=True)
    metadata = load(tmp_path / "model.safetensors").metadata
    assert (metadata["classes"], metadata["notes"]) == (["a", "b", "c"], ["two pictures were left out"])
    renamed = dataclasses.replace(dataset, class_names=("b", "a", "c"))
    with pytest.raises(UserError, match=r"classes is \['a', 'b', 'c'\] there and \['b', 'a', 'c'\] here"):
        run(tmp_path, data=renamed, conditional=True, resume=True, steps=20)
