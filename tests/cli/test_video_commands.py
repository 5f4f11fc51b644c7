"""Video on the command line: trained, gone on with, generated, read back and measured."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from commands import TINY, assert_goes_on, assert_refused, run, tree
from PIL import Image

from aigc_fast.cli.evaluate import _medium_of_folder
from aigc_fast.data import moving_digits
from aigc_fast.generation import Provenance, read_provenance, read_video_provenance, write_video
from aigc_fast.models import create, load, save
from aigc_fast.training import VideoTrainer

SMALL = ["--size", "16", "--frames", "6", "--given", "2", "--width", "4", "--hidden", "4", "--latent-dim", "2"]


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model with random weights, class-conditional; the tests read it only."""
    shape = {"frame_shape": (1, 16, 16), "frames": 6, "given": 2, "width": 4, "hidden": 4}
    path = tmp_path_factory.mktemp("models") / "film.safetensors"
    model = create("video", core="latent", num_classes=10, **shape)
    save(model, path, {"classes": [str(digit) for digit in range(10)], "data": {"name": "clips", "fps": 12.5}})
    return path


def clips_of(path):
    with Image.open(path) as picture:
        frames = []
        for index in range(picture.n_frames):
            picture.seek(index)
            frames.append(np.asarray(picture.convert("L")))
        return np.stack(frames), picture.info["duration"]


def test_a_model_trains_generates_and_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained = run("train", "video", "--conditional", "--core", "latent", *SMALL, *TINY[:-1], "2")
    assert trained.exit_code == 0, trained.output
    assert "2000 clips of moving digits, 6 frames of 16 × 16 pixels in grey, 10 classes" in trained.stdout
    folder = tmp_path / "runs" / "video"
    assert {path.name for path in (folder / "samples").iterdir()} == {
        f"step-0000000{step}.{kind}" for step in (2, 4) for kind in ("apng", "png")
    }
    for seed in ("0", "0", "1"):
        assert run("generate", "video", "--seed", seed, "--out", f"{seed}.apng", "--overwrite").exit_code == 0
    frames, duration = clips_of("0.apng")
    assert frames.shape == (6, 3 * 18 + 2, 4 * 18 + 2)
    assert duration == 100
    assert not np.array_equal(frames, clips_of("1.apng")[0])
    record = read_video_provenance("0.apng")
    assert (record.model, record.seed) == ("video", 0)
    command = record.settings["command"].split()
    assert run(*command[1:2], folder, *command[3:], "--out", "again.apng").exit_code == 0
    assert (tmp_path / "again.apng").read_bytes() == (tmp_path / "0.apng").read_bytes()
    assert read_provenance("0.png") == record
    measured = run("evaluate", "video", "--count", "7", "--json")
    assert measured.exit_code == 0, measured.output
    report = json.loads(measured.stdout)
    assert (report["count"], report["training_count"]) == (7, 1000)
    assert len(report["psnr_by_frame"]) == len(report["drift_by_frame"]) == 4
    assert 0 <= report["still"] <= 1
    assert report["variety"] > 0
    shown = run("evaluate", "video", "--count", "7").stdout
    assert "Fréchet distance" in shown
    assert "PSNR, dB, by predicted frame:" in shown


@pytest.mark.parametrize(("digits", "asked", "things"), [("2", [], 2), ("1", [], 1), ("2", ["--things", "1"], 1)])
def test_as_many_things_move_as_digits_unless_others_are_asked_for(tmp_path, digits, asked, things):
    trained = run("train", "video", "--digits", digits, *asked, *SMALL, *TINY, "--out", tmp_path)
    assert trained.exit_code == 0, trained.output
    assert load(tmp_path / "model.safetensors").config["things"] == things


def test_a_training_that_a_signal_ends_goes_on(tmp_path):
    assert_goes_on(tmp_path, VideoTrainer, ["video", *SMALL, *TINY[:-1], "2"], "samples/step-00000004.apng")


@pytest.mark.parametrize("suffix", ["apng", "gif"])
def test_files_are_of_the_kind_the_name_says_at_the_pace_asked_for(tmp_path, model_file, suffix):
    out = tmp_path / f"a.{suffix}"
    args = ["generate", model_file, "--class", "3", "--count", "2", "--frames", "9", "--out", out]
    assert run(*args, "--fps", "20", "--scale", "3", "--columns", "1").exit_code == 0
    frames, duration = clips_of(out)
    assert (frames.shape, duration) == ((9, 3 * 38, 3 * 20), 50)
    shown = json.loads(run("provenance", out).stdout)
    assert (shown["settings"]["fps"], shown["settings"]["frames"]) == (20, 9)
    assert "--class 3" in shown["settings"]["command"]
    assert run(*args[:-1], tmp_path / "b.gif").exit_code == 0
    # As the clips that it was trained on.
    assert clips_of(tmp_path / "b.gif")[1] == 80


def test_an_mp4_is_written_and_read_back(tmp_path, model_file):
    pytest.importorskip("imageio_ffmpeg")
    assert run("generate", model_file, "--out", tmp_path / "a.mp4").exit_code == 0
    assert json.loads(run("provenance", tmp_path / "a.mp4").stdout)["model"] == "video"


def test_each_clip_in_a_file_of_its_own(tmp_path, model_file):
    result = run("generate", model_file, "--what", "single", "--count", "3", "--out", tmp_path / "clips")
    assert result.exit_code == 0, result.output
    assert "Wrote 3 clips to" in result.stdout
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert names == [f"{index}.{kind}" for index in range(3) for kind in ("apng", "png")]
    assert read_video_provenance(tmp_path / "clips" / "2.apng").settings["index"] == 2


def test_given_frames_go_on_in_several_ways(tmp_path, model_file):
    clip = moving_digits(1, size=16, frames=6).batch()[0]
    start = write_video(tmp_path / "start.gif", clip, 10, Provenance("mine", None))
    out = tmp_path / "out" / "a.apng"
    args = ["generate", model_file, "--start", start, "--count", "2", "--columns", "1"]
    assert run(*args, "--out", out).exit_code == 0
    frames, _ = clips_of(out)
    first, second = frames[:, 2:18, 2:18], frames[:, 20:36, 2:18]
    given, _ = clips_of(start)
    assert np.array_equal(first[:2], given[:2])
    assert np.array_equal(second[:2], given[:2])
    assert not np.array_equal(first[2:], second[2:])
    assert len(frames) == 6
    refused = run("generate", model_file, "--start", tmp_path / "none.gif", "--out", tmp_path / "b.gif")
    assert_refused(refused, "none.gif: no such file")


def test_the_only_future_of_given_frames_is_shown_once(tmp_path):
    shape = {"frame_shape": (1, 16, 16), "frames": 6, "given": 2, "width": 4, "hidden": 4}
    save(create("video", **shape), tmp_path / "model.safetensors", {})
    start = write_video(tmp_path / "start.gif", moving_digits(1, size=16).batch()[0], 10, Provenance("mine", None))
    out = tmp_path / "a.apng"
    result = run("generate", tmp_path / "model.safetensors", "--start", start, "--count", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert clips_of(out)[0].shape == (6, 20, 20)
    single = ["--what", "single", "--count", "2", "--out", tmp_path / "clips"]
    assert run("generate", tmp_path / "model.safetensors", "--start", start, *single).exit_code == 0
    assert len(list((tmp_path / "clips").glob("*.apng"))) == 2


def test_a_folder_of_animations_is_trained_on_and_measured(tmp_path):
    clips = moving_digits(12, size=16, frames=6)
    for index, clip in enumerate(clips.batch()):
        (tmp_path / "mine" / f"class{index % 2}").mkdir(parents=True, exist_ok=True)
        path = tmp_path / "mine" / f"class{index % 2}" / f"{index}.{('gif', 'apng')[index % 3 == 0]}"
        write_video(path, clip, 25, Provenance("mine", None))
    data = ["--data", tmp_path / "mine"]
    result = run("train", "video", *data, *SMALL, "--conditional", *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    model = load(tmp_path / "run" / "model.safetensors")
    assert (model.num_classes, model.frame_shape, model.metadata["data"]["fps"]) == (2, (1, 16, 16), 25)
    assert run("generate", tmp_path / "run", "--class", "class1", "--out", tmp_path / "a.gif").exit_code == 0
    assert clips_of(tmp_path / "a.gif")[1] == 40
    measured = run("evaluate", tmp_path / "run", *data, "--count", "6", "--json")
    assert json.loads(measured.stdout)["psnr"] > 0
    assert_refused(run("evaluate", tmp_path / "run"), "give --data")
    assert _medium_of_folder(tmp_path / "mine").name == "video"


def test_a_folder_of_clips_is_measured_against_those_of_the_package(tmp_path):
    clips = moving_digits(60, seed=9)
    for index, clip in enumerate(clips.batch(slice(0, 8))):
        write_video(tmp_path / f"{index}.apng", clip, 10, Provenance("mine", None))
    measured = run("evaluate", tmp_path, "--json")
    assert measured.exit_code == 0, measured.output
    report = json.loads(measured.stdout)
    assert (report["count"], report["psnr"]) == (8, None)
    assert report["still"] < 0.1


def test_frames_in_folders_are_trained_on_and_what_is_left_out_is_told(tmp_path):
    clips = moving_digits(4, size=16, frames=6).frames
    for index, clip in enumerate(clips):
        (tmp_path / "mine" / f"clip{index}").mkdir(parents=True)
        for number, frame in enumerate(clip):
            Image.fromarray(frame[0].numpy()).save(tmp_path / "mine" / f"clip{index}" / f"{number}.png")
    Image.new("L", (8, 8)).save(tmp_path / "mine" / "clip0" / "9.png")
    result = run("train", "video", "--data", tmp_path / "mine", *SMALL, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "2 clips of mine" in result.stdout
    assert load(tmp_path / "run" / "model.safetensors").config["things"] == 1
    assert "Note: 1 file of frames of several sizes, left out: clip0 (16 × 16 and 8 × 8)" in result.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "video", "--size", "18"], ["multiples of 4"]),
        (["train", "video", "--digits", "3"], ["--digits"]),
        (["train", "video", "--frames", "4"], ["given=5", "frames=4"]),
        (["train", "video", "--core", "gru"], ["core='gru'"]),
        (["train", "video", "--schedule", "cosine"], ["schedule='cosine'"]),
        (["train", "video", "--shift", "1"], ["shift=1", "video"]),
        (["train", "video", "--data", "nowhere"], ["nowhere"]),
        (["train", "vae", "--digits", "2"], ["--digits", "vae"]),
        (["train", "vae", "--core", "latent"], ["--core", "vae"]),
        (["generate", "video"], ["video", "runs", "train video"]),
        (["generate", "MODEL", "--out", "a.avi"], ["a.avi", ".apng or .gif or .mp4"]),
        (["generate", "MODEL", "--fps", "60", "--out", "a.gif"], ["fps=60", "50"]),
        (["generate", "MODEL", "--fps", "0"], ["fps=0"]),
        (["generate", "MODEL", "--what", "grid"], ["--what grid", "film, single"]),
        (["generate", "MODEL", "--prompt", "a"], ["--prompt", "clips, not text"]),
        (["evaluate", "MODEL", "--neighbours", "a.png"], ["--neighbours", "clips"]),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(tmp_path, monkeypatch, model_file, args, words):
    monkeypatch.chdir(tmp_path)
    result = run(*[model_file if arg == "MODEL" else arg for arg in args])
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert not tree(tmp_path)


def test_an_mp4_without_its_writer_and_what_stands_beside_are_refused(tmp_path, model_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert_refused(run("generate", model_file, "--out", tmp_path / "a.mp4"), "imageio-ffmpeg", "aigc-fast[video]")
    (tmp_path / "a.png").write_bytes(b"mine")
    assert_refused(run("generate", model_file, "--out", tmp_path / "a.gif"), "a.png is there already")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}
