"""`aigc-fast generate` and `provenance`: what is made of a model, and what its record says."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import safetensors.torch
import torch
from commands import assert_refused, run, tree
from PIL import Image, PngImagePlugin

import aigc_fast
from aigc_fast.data import read_wav
from aigc_fast.generation import Provenance, draw, image_grid, read_provenance, read_wav_provenance, to_uint8, write_wav
from aigc_fast.models import load


def test_grid_is_what_its_record_says_and_comes_again(tmp_path, model_files):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        args = ["--count", "10", "--columns", "5", "--seed", "9", "--scale", "2", "--out", path]
        assert run("generate", model_files["dcgan"], *args).exit_code == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    record = read_provenance(paths[0])
    assert (record.model, record.seed) == ("dcgan", 9)
    model = load(model_files["dcgan"])
    assert record.settings["model_checksum"] == model.metadata["checksum"]
    expected = to_uint8(image_grid(draw(model, 10, seed=9), 5))
    with Image.open(paths[0]) as picture:
        assert picture.size == (2 * expected.shape[1], 2 * expected.shape[0])
        shrunk = picture.resize(expected.shape[::-1], Image.Resampling.NEAREST)
        assert shrunk.tobytes() == expected.tobytes()
    command = record.settings["command"].split()
    assert command[:3] == ["aigc-fast", "generate", "dcgan.safetensors"]
    again = tmp_path / "again.png"
    assert run("generate", model_files["dcgan"], *command[3:], "--out", again).exit_code == 0
    assert again.read_bytes() == paths[0].read_bytes()


@pytest.fixture
def _usual_recursion_limit():
    """What other tests import may have raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("_usual_recursion_limit")
def test_provenance_command_prints_the_record(tmp_path, model_files):
    path = tmp_path / "a.png"
    run("generate", model_files["conv-vae"], "--out", path, "--count", "2", "--seed", "4")
    shown = json.loads(run("provenance", path).stdout)
    assert (shown["model"], shown["seed"], shown["version"]) == ("conv-vae", 4, aigc_fast.__version__)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("aigc_fast", json.dumps({**shown, "settings": {}}).replace("{}", "[" * 900 + "]" * 900))
    Image.new("L", (4, 4)).save(tmp_path / "nested.png", pnginfo=chunks)
    assert_refused(run("provenance", tmp_path / "nested.png"), "nested.png", "nested too deep")
    sound = tmp_path / "a.WAV"
    write_wav(sound, torch.rand(50), 16000, Provenance("vocoder", 3))
    assert json.loads(run("provenance", sound).stdout)["model"] == "vocoder"


def test_existing_files_are_kept_unless_asked(tmp_path, model_files):
    path = tmp_path / "a.png"
    path.write_text("mine")
    assert_refused(run("generate", model_files["conv-vae"], "--out", path), path, "--overwrite")
    assert path.read_text() == "mine"
    assert run("generate", model_files["conv-vae"], "--out", path, "--overwrite").exit_code == 0
    folder = tmp_path / "single"
    folder.mkdir()
    (folder / "2.png").write_text("mine")
    assert_refused(
        run("generate", model_files["conv-vae"], "--what", "single", "--count", "3", "--out", folder), "2.png"
    )
    assert os.listdir(folder) == ["2.png"]
    assert_refused(run("generate", model_files["conv-vae"], "--out", folder), "folder")


def test_single_images_one_class(tmp_path, model_files):
    args = ["--what", "single", "--count", "11", "--class", "7", "--seed", "2", "--out", tmp_path]
    assert run("generate", model_files["dcgan"], *args).exit_code == 0
    names = sorted(os.listdir(tmp_path))
    assert names == [f"{index:02d}.png" for index in range(11)]
    expected = draw(load(model_files["dcgan"]), 11, seed=2, labels=7)
    for index, name in enumerate(names):
        assert read_provenance(tmp_path / name).settings["index"] == index
        with Image.open(tmp_path / name) as picture:
            assert picture.tobytes() == to_uint8(expected[index]).tobytes()


@pytest.mark.parametrize(
    ("what", "model", "args", "size"),
    [
        ("interpolation", "dcgan", ["--count", "2", "--columns", "5"], (5 * 30 + 2, 2 * 30 + 2)),
        ("manifold", "conv-vae", ["--count", "3"], (3 * 30 + 2, 3 * 30 + 2)),
        ("grid", "mlp-gan", [], (8 * 30 + 2, 8 * 30 + 2)),
    ],
)
def test_what_can_be_made(tmp_path, model_files, what, model, args, size):
    path = tmp_path / "a.png"
    result = run("generate", model_files[model], "--what", what, *args, "--out", path)
    assert result.exit_code == 0, result.output
    with Image.open(path) as picture:
        assert picture.size == size


def test_what_a_model_can_not_do(tmp_path, model_files):
    out = tmp_path / "a.png"
    assert_refused(run("generate", model_files["dcgan"], "--what", "manifold", "--out", out), "2 latent dimensions")
    assert_refused(run("generate", model_files["dcgan"], "--class", "10", "--out", out), "0 to 9")
    assert_refused(run("generate", model_files["mlp-gan"], "--class", "1", "--out", out), "without classes")
    assert_refused(run("generate", model_files["mlp-gan"], "--what", "film", "--out", out), "film", "grid")
    for name in ("a.jpg", "a"):
        assert_refused(run("generate", model_files["mlp-gan"], "--out", tmp_path / name), name, ".png")
        assert_refused(run("evaluate", model_files["mlp-gan"], "--neighbours", tmp_path / name), name, "PNG")
    assert_refused(run("generate", model_files["mlp-gan"], "--out", "x" * 300 + ".png"), "x.png: File name too long")
    assert os.listdir(tmp_path) == []


def test_what_can_be_made_of_sounds(tmp_path, model_files):
    file = model_files["vocoder"]
    single = tmp_path / "single"
    args = ["--what", "single", "--count", "3", "--class", "5", "--seed", "2", "--out", single]
    assert run("generate", file, *args).exit_code == 0
    assert sorted(os.listdir(single)) == [f"{index}.{kind}" for index in range(3) for kind in ("png", "wav")]
    expected = draw(load(file), 3, seed=2, labels=5)
    for index in range(3):
        found, _ = read_wav(single / f"{index}.wav")
        torch.testing.assert_close(found, expected[index].clamp(-1, 1), atol=2**-15, rtol=0)
        assert read_wav_provenance(single / f"{index}.wav").settings["index"] == index
    walk = tmp_path / "walk.wav"
    told = run("generate", file, "--what", "interpolation", "--columns", "4", "--out", walk).stdout
    assert told.startswith(f"Wrote {walk} and walk.png")
    assert len(read_wav(walk)[0]) == 4 * 800 + 3 * 1600
    before = tree(tmp_path)
    assert_refused(run("generate", file, "--what", "grid", "--out", walk), "grid", "sequence, single, interpolation")
    assert_refused(run("generate", file, "--out", tmp_path / "a.png"), "a.png", ".wav")
    assert_refused(run("generate", file, "--out", walk), walk, "--overwrite")
    (tmp_path / "b.png").write_text("mine")
    assert_refused(run("generate", file, "--out", tmp_path / "b.wav"), "b.png", "--overwrite")
    (tmp_path / "b.png").unlink()
    assert tree(tmp_path) == before


def nested_model():
    return safetensors.torch.save({"weight": torch.zeros(3)}, {"aigc_fast": "[" * 100_000 + "]" * 100_000})


def test_the_newest_model_of_a_medium_is_found(tmp_path, model_files, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["mlp-gan", "dcgan", "vocoder"]):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        shutil.copy(model_files[name], folder / "model.safetensors")
        os.utime(folder / "model.safetensors", (1e9 + age, 1e9 + age))
    for name, content in (("broken", b"hello"), ("nested", nested_model())):
        (tmp_path / "runs" / name).mkdir()
        (tmp_path / "runs" / name / "model.safetensors").write_bytes(content)
    assert "dcgan-grid.png" in run("generate", "images").stdout
    os.utime(tmp_path / "runs" / "mlp-gan" / "model.safetensors", (2e9, 2e9))
    assert "mlp-gan-grid.png" in run("generate", "images").stdout
    (tmp_path / "audio").mkdir()
    assert "vocoder-sequence.wav" in run("generate", "audio").stdout


def test_processes_share_the_shards_that_are_missing(model_files, tmp_path, monkeypatch):
    args = ["generate", model_files["mlp-gan"], "--count", "120", "--shard-size", "50", "--out", tmp_path / "shards"]
    told = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        told.append(run(*args))
        assert told[-1].exit_code == 0, told[-1].output
    assert told[0].stdout == ""
    assert "Wrote 120 images in 3 shards" in told[1].stdout
    assert (tmp_path / "shards" / "index.json").exists()
    assert_refused(run(*args[:-1], tmp_path / "grid.png", "--what", "grid"), "one process makes it")
    monkeypatch.delenv("RANK")
    assert_refused(run(*args, "--what", "shards", "--seed", "1"), "holds shards whose seed is 0, not 1")
    assert_refused(run(*args[:2], "--count", "100001", "--out", tmp_path / "x.png"), "--what shards")
