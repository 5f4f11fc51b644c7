"""Classes by name, the data that a model was trained on, and what the command line says of both."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import TINY, assert_refused, run, tree

from aigc_fast.cli.options import chosen_device
from aigc_fast.cli.train import train as train_command
from aigc_fast.generation import draw, image_grid, interpolate, read_provenance, to_uint8
from aigc_fast.models import create, load, save

ANIMALS = ["cat", "dog", "emu", "7"]


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    """A conditional model whose file says what its classes are called."""
    path = tmp_path_factory.mktemp("animals") / "animals.safetensors"
    torch.manual_seed(0)
    save(create("mlp-gan", hidden=8, num_classes=4), path, {"classes": ANIMALS})
    return path


@pytest.fixture
def folder(tmp_path):
    """Pictures of two classes."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(12):
            pixels = generator.integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize(("given", "label"), [("cat", 0), ("emu", 2), ("7", 3), ("0", 0), ("3", 3)])
def test_a_class_is_drawn_by_its_name_or_else_by_its_number(tmp_path, animals, given, label):
    path = tmp_path / "a.png"
    assert run("generate", animals, "--class", given, "--count", "4", "--out", path).exit_code == 0
    with Image.open(path) as picture:
        assert picture.tobytes() == to_uint8(image_grid(draw(load(animals), 4, seed=0, labels=label))).tobytes()
    command = read_provenance(path).settings["command"]
    assert f"--class {given}" in command


@pytest.mark.parametrize("given", ["frog", "4", "-1", "", "Cat", "1.0", "٣٣"])
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_class_that_is_not_there_names_those_that_are(tmp_path, animals, monkeypatch, command, given):
    monkeypatch.chdir(tmp_path)
    refused = run(command, animals, f"--class={given}")
    assert_refused(refused, f"--class {given}: expected one of cat, dog, emu, 7, or a number from 0 to 3")
    assert not list(tmp_path.iterdir())


def test_many_classes_are_not_all_listed(tmp_path):
    names = [f"class {index}" for index in range(1000)]
    save(create("mlp-gan", hidden=2, num_classes=1000), tmp_path / "m.safetensors", {"classes": names})
    refused = run("generate", tmp_path / "m.safetensors", "--class", "frog", "--out", tmp_path / "a.png")
    assert_refused(refused, "class 19, … (1000 in all), or a number from 0 to 999")


@pytest.mark.parametrize("classes", [None, "abcd", ["a"], [1, 2, 3, 4], {"a": 1}])
def test_names_that_are_none_are_numbers(tmp_path, classes):
    save(create("mlp-gan", hidden=2, num_classes=4), tmp_path / "m.safetensors", {"classes": classes})
    args = ["generate", tmp_path / "m.safetensors", "--out", tmp_path / "a.png"]
    assert_refused(run(*args, "--class", "4"), "expected one of 0, 1, 2, 3, or a number from 0 to 3")
    assert run(*args, "--class", "3").exit_code == 0


def test_names_come_from_the_data_and_are_said(tmp_path, folder):
    args = ["train", "mlp-gan", "--hidden", "4", *TINY, "--data", folder, "--conditional", "--size", "12"]
    trained = run(*args, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    lines = trained.stdout.splitlines()
    assert lines[0] == "24 images of pets, 12 × 12 pixels in grey, 2 classes: cat, dog"
    assert load(tmp_path / "run" / "model.safetensors").metadata["classes"] == ["cat", "dog"]
    shown = run("generate", tmp_path / "run", "--class", "dog", "--out", tmp_path / "dog.png")
    assert shown.exit_code == 0, shown.output
    assert_refused(run("generate", tmp_path / "run", "--class", "cow"), "cat, dog")


def test_sounds_are_said_too(tmp_path):
    args = ["train", "vocoder", "--seconds", "0.05", "--width", "2", "--steps", "1", "--batch-size", "4"]
    shown = run(*args, "--sample-interval", "0", "--out", tmp_path / "run")
    first = "144 sounds of vowels and strings, 0.05 s at 16000 Hz, 6 classes: a, e, i, o, u, string"
    assert shown.stdout.splitlines()[0] == first
    assert "1 step on 144 sounds" in shown.stdout


def test_one_is_one(tmp_path, animals):
    (tmp_path / "one").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "one" / "a.png")
    args = ["train", "mlp-gan", "--hidden", "2", "--data", tmp_path / "one", "--steps", "1", "--sample-interval", "0"]
    shown = run(*args, "--out", tmp_path / "run").stdout
    assert "1 image of one, 28 × 28 pixels in grey" in shown
    assert "1 step on 1 image of one" in shown
    single = run("generate", animals, "--what", "single", "--count", "1", "--out", tmp_path / "single")
    assert "Wrote 1 image to" in single.stdout


def test_a_grid_has_a_class_in_each_column(tmp_path, animals):
    path = tmp_path / "a.png"
    shown = run("generate", animals, "--out", path)
    assert "columns: cat, dog, emu, 7" in shown.stdout
    with Image.open(path) as picture:
        assert picture.tobytes() == to_uint8(image_grid(draw(load(animals), 32, seed=0), 4)).tobytes()


@pytest.mark.parametrize(
    ("args", "rows", "labels", "to_labels"),
    [
        ([], 8, [0, 1, 2, 3, 0, 1, 2, 3], [1, 2, 3, 0, 1, 2, 3, 0]),
        (["--count", "2"], 2, [0, 1], [1, 2]),
        (["--class", "dog"], 8, 1, None),
        (["--class", "dog", "--to-class", "7"], 8, 1, 3),
        (["--to-class", "cat", "--count", "3"], 3, [0, 1, 2], 0),
    ],
)
def test_walks_go_from_class_to_class(tmp_path, animals, args, rows, labels, to_labels):
    path = tmp_path / "a.png"
    assert run("generate", animals, "--what", "interpolation", *args, "--out", path).exit_code == 0
    expected = interpolate(load(animals), 10, rows=rows, labels=labels, to_labels=to_labels)
    with Image.open(path) as picture:
        assert picture.tobytes() == to_uint8(image_grid(expected, 10)).tobytes()
    command = read_provenance(path).settings["command"].split()
    again = tmp_path / "again.png"
    assert run("generate", animals, *command[3:], "--out", again).exit_code == 0
    assert again.read_bytes() == path.read_bytes()


def test_what_walks_can_not_do(tmp_path, animals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run("generate", animals, "--to-class", "cat"), "--to-class", "interpolation", "grid")
    walks = ["generate", animals, "--what", "interpolation"]
    assert_refused(run(*walks, "--to-class", "cow"), "--to-class cow", "cat, dog")
    assert_refused(run(*walks, "--columns", "1"), "--columns 1", "at least 2")
    save(create("mlp-gan", hidden=2), tmp_path / "plain.safetensors")
    refused = run("generate", "plain.safetensors", "--what", "interpolation", "--to-class", "1")
    assert_refused(refused, "--to-class 1", "without classes", "--conditional")


def test_what_is_chosen_gets_a_name_of_its_own(tmp_path, animals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = [[], ["--seed", "1"], ["--class", "dog"], ["--class", "dog", "--seed", "1"], ["--count", "3"]]
    chosen += [["--columns", "2"], ["--scale", "2"], ["--what", "interpolation"], ["--what", "single", "--seed", "3"]]
    for args in chosen:
        assert run("generate", animals, *args).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "animals-grid-class-dog-seed-1.png",
        "animals-grid-class-dog.png",
        "animals-grid-columns-2.png",
        "animals-grid-count-3.png",
        "animals-grid-scale-2.png",
        "animals-grid-seed-1.png",
        "animals-grid.png",
        "animals-interpolation.png",
        "animals-single-seed-3",
    ]
    before = tree(tmp_path)
    assert_refused(run("generate", animals, "--seed", "1"), "animals-grid-seed-1.png", "--overwrite")
    assert tree(tmp_path) == before
    names = [f"a/{index}" for index in range(2)]
    save(create("mlp-gan", hidden=2, num_classes=2), tmp_path / "odd.safetensors", {"classes": names})
    assert run("generate", "odd.safetensors", "--class", "a/1").exit_code == 0
    assert (tmp_path / "out" / "odd-grid-class-a_1.png").is_file()


def test_runs_of_one_model_get_names_of_their_own(tmp_path, animals, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run_name in ("first", "second"):
        (tmp_path / "runs" / run_name).mkdir(parents=True)
        (tmp_path / "runs" / run_name / "model.safetensors").write_bytes(animals.read_bytes())
        assert run("generate", f"runs/{run_name}").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first-grid.png", "second-grid.png"]


def test_a_model_is_measured_against_what_it_was_trained_on(tmp_path, folder):
    args = ["train", "mlp-gan", "--hidden", "4", *TINY]
    assert run(*args, "--data", folder, "--out", tmp_path / "pets-run").exit_code == 0
    refused = run("evaluate", tmp_path / "pets-run", "--count", "20")
    assert_refused(refused, "was trained on pets (24 images), not on what comes with the package (digits)", "--data")
    measured = run("evaluate", tmp_path / "pets-run", "--count", "20", "--data", folder, "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["training_count"] == 24
    assert "trained on" not in measured.stderr
    other = run("evaluate", tmp_path / "pets-run", "--count", "20", "--data", folder / "cat", "--json")
    assert other.exit_code == 0, other.output
    assert other.stderr.startswith("Note: the model was trained on pets, not on this cat\n")
    assert run(*args, "--out", tmp_path / "digits-run").exit_code == 0
    assert run("evaluate", tmp_path / "digits-run", "--count", "20").exit_code == 0


@pytest.mark.parametrize("data", [None, "digits", {"name": ["x"], "images": "many", "checksum": None}])
def test_what_a_file_says_of_its_data_may_be_anything(tmp_path, data):
    save(create("mlp-gan", hidden=2), tmp_path / "m.safetensors", {"data": data})
    result = run("evaluate", tmp_path / "m.safetensors", "--count", "20")
    if isinstance(data, dict):
        assert_refused(result, "was trained on ['x'], not on what comes with the package (digits)")
    else:
        assert result.exit_code == 0, result.output


def test_defaults_are_in_the_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    shown = run("train", "--help").stdout
    for option, default in {
        "--size": "28, or 32 for video; an array's own",
        "--latent-dim": "100 for mlp-gan and dcgan, 20 for vae, 2 for conv-vae, 16 for vocoder and video",
        "--width": "64 for dcgan and vocoder, 32 for conv-vae and video",
        "--hidden": "256 for mlp-gan, 400 for vae",
        "--shift": "0",
        "--beta": "1.0",
        "--device": "cuda where there is one, else cpu",
    }.items():
        assert re.search(rf"{option} .*\[default: {re.escape(default)}", shown), option
    for command in ("train", "generate", "evaluate", "demo", "explain"):
        assert "[default: (" not in run(command, "--help").stdout
        assert "--device" in run(command, "--help").stdout
    assert train_command.__doc__.count("SIGUSR1") == 1


def test_a_device_that_is_there_is_taken(tmp_path, animals):
    assert chosen_device(None) == chosen_device("cpu") == torch.device("cpu")
    assert run("generate", animals, "--device", "cpu", "--out", tmp_path / "a.png").exit_code == 0
    assert read_provenance(tmp_path / "a.png").settings["device"] == "cpu"
    shown = run("explain", "conv_transpose2d", "--device", "cpu")
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried\nto allocate"), None])
def test_too_little_memory_is_one_line(tmp_path, animals, monkeypatch, error):
    def fail(*args, **kwargs):
        if error is None:
            return torch.empty(2**60)
        raise error

    monkeypatch.setattr("aigc_fast.media.medium.draw", fail)
    assert_refused(run("generate", animals, "--out", tmp_path / "a.png"), "--count")


def test_a_name_that_is_no_text_is_shown_as_it_can_be(tmp_path, animals):
    path = tmp_path / "\udcff.png"
    shown = run("generate", animals, "--out", path)
    assert shown.exit_code == 0, shown.output
    assert "\\udcff.png" in shown.stdout
    assert path.is_file()
