"""`aigc-fast train` and `evaluate`: runs, what they are trained on, and what is measured."""

from __future__ import annotations

import json
import signal

import pytest
import torch
from commands import TINY, assert_refused, run, tree
from PIL import Image

from aigc_fast.data import digits, read_wav, vowels_and_strings
from aigc_fast.generation import Provenance, read_provenance, read_wav_provenance, write_wav
from aigc_fast.models import ConvVAE, load, save
from aigc_fast.training import VAETrainer


@pytest.mark.parametrize("model", ["mlp-gan", "vae"])
def test_training_writes_a_model_that_generates_and_is_measured(tmp_path, model):
    folder = tmp_path / "run"
    result = run("train", model, "--hidden", "16", *TINY, "--conditional", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "Next:  aigc-fast generate" in result.stdout
    loaded = load(folder / "model.safetensors")
    assert loaded.name == model
    assert (loaded.num_classes, loaded.config["hidden"]) == (10, 16)
    grid = tmp_path / "grid.png"
    assert run("generate", folder / "model.safetensors", "--class", "3", "--count", "4", "--out", grid).exit_code == 0
    measured = run("evaluate", folder / "model.safetensors", "--count", "40", "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["count"] == 40


def test_same_seed_same_weights_and_a_run_is_not_overwritten_unasked(tmp_path):
    args = ["train", "mlp-gan", "--hidden", "8", *TINY]
    for name in ("a", "b"):
        assert run(*args, "--seed", "5", "--out", tmp_path / name).exit_code == 0
    a, b = (load(tmp_path / name / "model.safetensors").state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    before = tree(tmp_path)
    refused = run(*args, "--seed", "6", "--out", tmp_path / "a")
    assert_refused(refused, "holds a run already", "--resume latest", "--overwrite", "--out")
    assert tree(tmp_path) == before
    assert run(*args, "--seed", "6", "--out", tmp_path / "a", "--overwrite").exit_code == 0
    assert (
        run(
            *args[:4], "--steps", "6", *TINY[2:], "--seed", "6", "--out", tmp_path / "a", "--resume", "latest"
        ).exit_code
        == 0
    )
    assert load(tmp_path / "a" / "model.safetensors").metadata["step"] == 6


def test_brackets_in_the_name_of_a_folder_are_told(tmp_path):
    folder = tmp_path / "[bold]run"
    assert f"{folder}/model.safetensors" in run("train", "mlp-gan", "--hidden", "8", *TINY, "--out", folder).stdout


def test_a_finished_run_can_be_resumed_without_its_log(tmp_path):
    args = ["train", "mlp-gan", "--hidden", "8", *TINY]
    assert run(*args, "--out", tmp_path / "a").exit_code == 0
    (tmp_path / "a" / "log.jsonl").unlink()
    for out, which in (("a", "latest"), ("b", tmp_path / "a" / "checkpoints" / "step-00000004.safetensors")):
        result = run(*args, "--out", tmp_path / out, "--resume", which)
        assert result.exit_code == 0, result.output
        assert "4/4" in result.stdout
        assert "4 steps on 1797 images of digits: the checkpoint had them all" in result.stdout
    assert_refused(run(*args, "--steps", "3", "--out", tmp_path / "a", "--resume", "latest"), "step 4 already", "3")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_leaves_a_checkpoint_and_one_line(tmp_path, monkeypatch, name):
    step = VAETrainer._step

    def signalled(self, inputs, labels):
        if self.step_count == 2:
            signal.raise_signal(getattr(signal, name))
        return step(self, inputs, labels)

    args = ["train", "vae", "--hidden", "8", *TINY, "--out", tmp_path]
    with monkeypatch.context() as patched:
        patched.setattr(VAETrainer, "_step", signalled)
        stopped = run(*args)
    checkpoint = tmp_path / "checkpoints" / "step-00000003.safetensors"
    assert stopped.exit_code == 130
    assert stopped.stderr == f"aigc-fast: interrupted; {checkpoint} holds everything to go on: --resume latest\n"
    gone_on = run(*args, "--resume", "latest")
    assert gone_on.exit_code == 0, gone_on.output
    assert load(tmp_path / "model.safetensors").metadata["step"] == 4


def test_a_vocoder_trains_generates_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = run("train", "vocoder", "--conditional", "--seconds", "0.05", "--width", "4", *TINY[:-1], "2")
    assert trained.exit_code == 0, trained.output
    assert "144 sounds of vowels and strings" in trained.stdout
    folder = tmp_path / "runs" / "vocoder"
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step-0000000{step}.{kind}" for step in (2, 4) for kind in ("wav", "png")
    }
    for seed in ("0", "0", "1"):
        assert run("generate", "audio", "--seed", seed, "--out", f"{seed}.wav", "--overwrite").exit_code == 0
    audio, rate = read_wav("0.wav")
    assert rate == 16000
    assert len(audio) == 6 * 800 + 5 * 1600
    assert not torch.equal(audio, read_wav("1.wav")[0])
    record = read_wav_provenance("0.wav")
    assert (record.model, record.seed) == ("vocoder", 0)
    command = record.settings["command"].split()
    assert run(*command[1:2], folder, *command[3:], "--out", "again.wav").exit_code == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "0.wav").read_bytes()
    assert read_provenance("0.png") == record
    measured = run("evaluate", "audio", "--count", "7", "--json")
    assert measured.exit_code == 0, measured.output
    report = json.loads(measured.stdout)
    assert (report["count"], report["training_count"]) == (7, 144)
    assert report["nearest_of_training"] < report["nearest_of_noise"]


def test_folders_of_sounds_are_trained_on_and_measured(tmp_path):
    sounds = vowels_and_strings(1600, each=1)
    for index, (audio, label) in enumerate(zip(sounds.audio, sounds.labels, strict=True)):
        folder = tmp_path / "mine" / sounds.class_names[label]
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(folder / f"{index}.wav", audio, 16000, Provenance("mine", 0))
    args = ["--data", tmp_path / "mine", "--seconds", "0.1", "--width", "4", "--conditional", "--out", tmp_path / "run"]
    assert run("train", "vocoder", *args, *TINY).exit_code == 0
    model = load(tmp_path / "run" / "model.safetensors")
    assert (model.num_classes, model.length) == (6, 1600)
    shown = run("evaluate", tmp_path / "mine" / "a")
    assert shown.exit_code == 0, shown.output
    assert "3 sounds against 144 of vowels and strings" in shown.stdout
    copied = json.loads(run("evaluate", tmp_path / "mine", "--data", tmp_path / "mine", "--json").stdout)
    assert copied["count"] == 18
    assert copied["nearest"] == pytest.approx(0, abs=1e-6)
    assert_refused(
        run("evaluate", tmp_path / "mine" / "a", "--neighbours", tmp_path / "a.png"), "--neighbours", "sounds"
    )


def test_what_the_data_is_and_what_was_left_out_is_told_at_the_start(tmp_path):
    data = tmp_path / "[animals]"
    for name in ("cat/a", "cat/b", "dog/part1/a"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (40, 30)).save(data / f"{name}.png")
    Image.new("L", (28, 28)).save(data / "preview.png")
    args = ["--data", data, "--hidden", "4", *TINY[:2], "--sample-interval", "0", "--batch-size", "2"]
    shown = run("train", "mlp-gan", *args, "--out", tmp_path / "run")
    assert shown.exit_code == 0, shown.output
    names = "cat/a.png, cat/b.png, dog/part1/a.png"
    sizes = names.replace(".png", ".png (40 × 30)")
    assert shown.stdout.splitlines()[:4] == [
        "3 images of [animals], 28 × 28 pixels in colour, 2 classes: cat, dog",
        "Note: 1 file left out, beside the class folders: preview.png",
        f"Note: 3 files with transparency, put on a background of white: {names}",
        f"Note: 3 files cropped to the middle square and scaled to 28 × 28 pixels (size): {sizes}",
    ]


def test_how_images_are_read_can_be_chosen(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(12):
        Image.new("RGBA", (28, 28)).save(data / f"{index}.png")
    args = ["--data", data, "--hidden", "4", *TINY]
    checksums = {}
    for name in ("white", "black"):
        shown = run("train", "mlp-gan", *args, "--background", name, "--out", tmp_path / name)
        assert shown.exit_code == 0, shown.output
        assert f"Note: 12 files with transparency, put on a background of {name}: 0.png, 1.png" in shown.stdout
        checksums[name] = load(tmp_path / name / "model.safetensors").metadata["data"]["checksum"]
    assert checksums["white"] != checksums["black"]
    for command in (["train", "mlp-gan", "--out", tmp_path / "no"], ["evaluate", data]):
        args = [*command, "--data", data]
        assert_refused(run(*args, "--max-pixels", "100"), "100 pixels (max_pixels)")
        assert_refused(run(*args, "--background", "wite"), "background='wite'")
    assert_refused(run("train", "vocoder", "--background", "white"), "--background", "vocoder")
    assert_refused(run("train", "vocoder", "--max-pixels", "9"), "--max-pixels", "vocoder")
    measured = run("evaluate", data, "--data", data, "--background", "black", "--json")
    assert measured.exit_code == 0, measured.output
    assert json.loads(measured.stdout)["nearest"] == 0
    assert "on a background of black" in measured.stderr


def test_a_folder_of_images_and_sounds_is_not_measured_by_half(tmp_path):
    for index, audio in enumerate(vowels_and_strings(1600, each=1).audio[:3]):
        write_wav(tmp_path / f"{index}.wav", audio, 16000, Provenance("mine", 0))
        Image.new("L", (28, 28)).save(tmp_path / f"{index}.png")
    shown = run("evaluate", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "3 sounds against" in shown.stdout
    assert "3 files left out, no WAV files by their names: 0.png" in shown.stdout
    assert_refused(run("evaluate", tmp_path, "--background", "red"), "--background", "holds sounds, not images")
    (tmp_path / "more").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "more" / "photo.jpg")
    assert_refused(run("evaluate", tmp_path), "expected images or sounds, got 3 sounds and 1 image (photo.jpg)")


def test_a_folder_of_training_images_is_found_to_be_copied(tmp_path):
    images = digits().images[:60, 0].numpy()
    folder = tmp_path / "images"
    folder.mkdir()
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{index}.png")
    pairs = tmp_path / "pairs.png"
    found = run("evaluate", folder, "--json", "--neighbours", pairs)
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert (report["nearest"], report["precision"]) == (0.0, 1.0)
    assert pairs.exists()
    shown = run("evaluate", folder)
    assert "Nearest training image" in shown.stdout
    assert "Fréchet distance" in shown.stdout


def test_too_few_images_or_another_size(tmp_path, model_files):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (28, 28)).save(folder / "a.png")
    assert_refused(run("evaluate", folder), folder, "expected at least 6 images, got 1")
    save(ConvVAE(width=2, image_shape=(1, 8, 12)), tmp_path / "odd.safetensors")
    assert_refused(run("evaluate", tmp_path / "odd.safetensors"), "8")
