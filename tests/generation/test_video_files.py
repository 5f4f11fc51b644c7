"""Animations and video files: their frames, their pace, and what they say of themselves."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from aigc_fast.data import load_videos
from aigc_fast.errors import UserError
from aigc_fast.generation import (
    Provenance,
    clip_grid,
    contact_sheet,
    read_provenance,
    read_video_provenance,
    write_clips,
    write_video,
)

RECORD = Provenance("video", 7, {"note": "größer ≥ 2", "config": {"frame_shape": [1, 8, 8]}, "long": "x" * 3000})


@pytest.fixture
def frames():
    levels = torch.randint(0, 256, (6, 1, 8, 12), generator=torch.Generator().manual_seed(0))
    return levels / 127.5 - 1


@pytest.mark.parametrize("suffix", [".apng", ".png", ".gif", ".GIF"])
@pytest.mark.parametrize("scale", [1, 3])
def test_frames_pace_and_record_are_read_back(tmp_path, frames, suffix, scale):
    path = write_video(tmp_path / f"a{suffix}", frames, 12.5, RECORD, scale=scale)
    with Image.open(path) as picture:
        assert picture.n_frames == 6
        assert picture.size == (12 * scale, 8 * scale)
        assert picture.info["duration"] == 80
        assert picture.info["loop"] == 0
        for index, frame in enumerate(frames):
            picture.seek(index)
            found = np.asarray(picture.convert("L"))[::scale, ::scale]
            np.testing.assert_array_equal(found, ((frame[0] + 1) * 127.5).round().byte().numpy())
    assert read_video_provenance(path) == RECORD
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_apng_says_what_a_png_says(tmp_path, frames):
    path = write_video(tmp_path / "a.apng", frames, 10, RECORD)
    with Image.open(path) as picture:
        assert picture.text["Description"] == "AI-generated video"
        assert "trainedAlgorithmicMedia" in picture.text["XML:com.adobe.xmp"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_mp4_carries_its_record_and_odd_sides_are_made_even(tmp_path, frames):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    steady = frames[:1, :, :1, :1].expand(12, 3, 33, 31)
    path = write_video(tmp_path / "a.mp4", steady, 24, RECORD)
    assert read_video_provenance(path) == RECORD
    reader = ffmpeg.read_frames(str(path))
    facts = next(reader)
    shown = list(reader)
    assert (facts["size"], facts["fps"], len(shown)) == ((32, 34), 24, 12)
    wanted = (frames[0, 0, 0, 0] + 1) * 127.5
    assert np.abs(np.frombuffer(shown[5], np.uint8).astype(float) - float(wanted)).max() < 8
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_an_mp4_needs_its_writer(tmp_path, frames, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"a\.mp4: video files take imageio-ffmpeg"):
        write_video(tmp_path / "a.mp4", frames, 10, RECORD)
    assert not list(tmp_path.iterdir())


def test_a_written_clip_is_read_as_training_data(tmp_path, frames):
    square = frames[..., :8]
    for name in ("a.apng", "b.gif"):
        write_video(tmp_path / name, square, 20, RECORD)
    clips = load_videos(tmp_path, size=8, frames=6)
    assert clips.fps == 20
    for clip in (clips.batch()[0], clips.held_out[0] / 127.5 - 1):
        torch.testing.assert_close(clip, square)


def test_a_contact_sheet_has_a_clip_in_each_row(tmp_path, frames):
    clips = torch.stack([frames, -frames])
    sheet = contact_sheet(clips)
    assert sheet.shape == (1, 2 * 10 + 2, 6 * 14 + 2)
    assert torch.equal(sheet[:, 2:10, 16:28], frames[1])
    assert torch.equal(sheet[:, 12:20, 16:28], -frames[1])
    assert contact_sheet(frames.expand(2, -1, -1, -1, -1), columns=3).shape[-1] == 3 * 14 + 2
    video, picture = write_clips(tmp_path / "a.gif", frames, sheet, 10, RECORD)
    assert (video.name, picture.name) == ("a.gif", "a.png")
    assert read_video_provenance(video) == read_provenance(picture) == RECORD


def test_clips_side_by_side_are_laid_out_as_images_are(frames):
    grid = clip_grid(torch.stack([frames, -frames, frames]), 2)
    assert grid.shape == (6, 1, 22, 30)
    assert torch.equal(grid[4, :, 2:10, 16:28], -frames[4])


@pytest.mark.parametrize(
    ("name", "fps", "words"),
    [
        ("a.avi", 10, "expected the name of an APNG, GIF or MP4 file"),
        ("a.gif", 51, "fps=51: expected above 0 and at most 50 for .gif"),
        ("a.apng", 0, "fps=0"),
        ("a.apng", float("nan"), "fps=nan"),
        ("nowhere/a.gif", 10, "cannot write"),
    ],
)
def test_what_cannot_be_written_is_told_and_nothing_is_left(tmp_path, frames, name, fps, words):
    with pytest.raises(UserError) as error:
        write_video(tmp_path / name, frames, fps, RECORD)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".apng", ".gif", ".mp4"])
def test_files_without_a_record_are_told(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(UserError, match="No such file"):
        read_video_provenance(path)
    for content in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\0\0\0\x10ftypisom\0\0\0\0\0\0\0\0", b"RIFF" * 30):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_video_provenance(path)
        assert "\n" not in str(error.value)
    if suffix != ".mp4":
        Image.new("L", (4, 4)).save(path, "GIF" if suffix == ".gif" else "PNG")
        with pytest.raises(UserError, match="carries no record of aigc_fast"):
            read_video_provenance(path)


def test_boxes_of_an_mp4_that_lie_about_their_sizes_come_to_an_end(tmp_path):
    path = tmp_path / "a.mp4"
    for size in (0, 1, 7, 8, 2**32 - 1):
        path.write_bytes(b"\0\0\0\x08ftyp" + size.to_bytes(4, "big") + b"moov" + b"\0" * 40)
        with pytest.raises(UserError, match="carries no record"):
            read_video_provenance(path)
