"""Clips: digits that move, and files of moving pictures, whole, odd and damaged."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
import torch
from memory import forget_peak, peak
from PIL import ExifTags, Image, TiffImagePlugin

from aigc_fast.data import load_videos, moving_digits
from aigc_fast.data.videos import first_frames
from aigc_fast.errors import UserError
from aigc_fast.metrics.video import centre


def pictures(count, size=(16, 16), mode="L", seed=0):
    """Frames that all differ."""
    generator = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (*size[::-1], bands) if bands > 1 else size[::-1]
    return [Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8), mode) for _ in range(count)]


def write(path, frames, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    form = "GIF" if path.suffix == ".gif" else "PNG"
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **{"duration": 40, **options})
    return path


def write_folder(folder, frames):
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        frame.save(folder / f"frame{index}.png")


@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("size", [32, 64])
def test_digits_move_at_a_steady_pace_and_bounce(digits, size):
    clips = moving_digits(40, digits=digits, size=size, frames=12)
    assert clips.frames.shape == (40, 12, 1, size, size)
    assert clips.held_out.shape == (4, 12, 1, size, size)
    assert clips.num_classes == (10, 55)[digits - 1]
    assert clips.labels.shape == (40,)
    assert clips.paths.shape == (40, 12, digits, 2)
    steps = clips.paths.diff(dim=1)
    assert (steps == steps.round()).all()
    # A step that bounces is shorter, and the next one goes back at the old pace.
    pace = steps.abs().amax(1, keepdim=True)
    assert (steps.abs() == pace).float().mean() > 0.8
    assert pace.max() <= round(0.09 * size)
    assert pace.amax(-1).min() >= 1
    assert (steps[:, 1:] * steps[:, :-1] < 0).any()
    # What is brighter than almost nothing touches the borders, and does not go beyond.
    assert (clips.frames[..., 0, :] > 24).any()
    assert (clips.frames[..., -1, :] > 24).any()
    if digits == 1:
        ink = (clips.frames > 24).flatten(2).sum(2)
        assert torch.equal(ink, ink[:, :1].expand_as(ink))


def test_a_digit_is_where_its_path_says_and_keeps_its_shape():
    clips = moving_digits(30, size=32, frames=10)
    offset = centre(clips.batch()) - clips.paths[:, :, 0]
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset), atol=1e-6, rtol=0)
    assert offset.abs().max() < 3
    sums = clips.frames.flatten(2).sum(2)
    assert (sums == sums[:, :1]).all()


def test_the_same_arguments_give_the_same_clips_and_another_seed_others():
    first, again, other = (moving_digits(8, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.frames, again.frames)
    assert first.checksum() == again.checksum() != other.checksum()
    assert torch.equal(moving_digits(8, seed=1, channels=3).frames, first.frames.expand(-1, -1, 3, -1, -1))


def test_held_out_digits_are_others():
    clips = moving_digits(300, size=16, frames=2)
    seen = {frame.sort().values.numpy().tobytes() for frame in clips.frames[:, 0].flatten(1)}
    assert not seen & {frame.sort().values.numpy().tobytes() for frame in clips.held_out[:, 0].flatten(1)}


def test_a_pair_s_class_says_both_digits():
    clips = moving_digits(20, digits=2)
    assert clips.class_names[:3] == ("0+0", "0+1", "0+2")
    assert clips.class_names[-1] == "9+9"
    assert "55 classes" in clips.summary
    assert clips.record()["digits"] == 2


@pytest.mark.parametrize("suffix", [".gif", ".apng", ".png"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_animations_are_cut_into_clips(tmp_path, suffix, mode):
    frames = pictures(11, mode=mode)
    write(tmp_path / f"a{suffix}", frames)
    for path in (tmp_path, tmp_path / f"a{suffix}"):
        clips = load_videos(path, size=16, frames=3)
        assert (len(clips), len(clips.held_out)) == (2, 1)
        assert clips.fps == 25
        assert clips.frames.shape[1:] == (3, 3 if mode == "RGB" else 1, 16, 16)
        assert clips.notes == (f"1 file whose last frames do not fill a clip and were left out: a{suffix} (2)",)
        found = {clip.numpy().tobytes() for clip in torch.cat([clips.frames, clips.held_out])}
        arrays = [np.asarray(frame).reshape(16, 16, -1).transpose(2, 0, 1) for frame in frames]
        # A GIF has 256 colours: of those in colour only the first is as it was.
        wanted = {np.stack(arrays[i : i + 3]).tobytes() for i in (0, 3, 6)}
        assert found == wanted or (suffix, mode) == (".gif", "RGB")


def test_folders_of_frames_are_clips_and_folders_of_clips_are_classes(tmp_path):
    for name in ("run/a", "run/b", "walk/c", "walk/deep/d"):
        write_folder(tmp_path / name, pictures(4))
    write(tmp_path / "walk" / "e.gif", pictures(4))
    (tmp_path / "walk" / "notes.txt").write_text("")
    clips = load_videos(tmp_path, size=16, frames=4)
    assert clips.class_names == ("run", "walk")
    assert len(clips) + len(clips.held_out) == 5
    assert sorted([*clips.labels.tolist(), *clips.held_out_labels.tolist()]) == [0, 0, 1, 1, 1]
    assert clips.notes == ("1 file left out, no clips: walk/notes.txt",)


def test_frames_come_in_natural_order_and_one_folder_of_them_is_a_clip(tmp_path):
    frames = [Image.new("L", (16, 16), 10 * index) for index in range(12)]
    write_folder(tmp_path / "clip", frames)
    clips = load_videos(tmp_path / "clip", size=16, frames=6)
    starts = {clip[0, 0, 0, 0].item() for clip in torch.cat([clips.frames, clips.held_out])}
    assert starts == {0, 60}
    assert clips.class_names == ()


def test_frames_are_turned_upright(tmp_path):
    upright = np.kron([[250, 90], [20, 170]], np.ones((8, 12))).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    taken = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for index in range(2):
            taken.save(tmp_path / clip / f"{index}.png", exif=exif)
    clips = load_videos(tmp_path, size=16, frames=2)
    assert (torch.cat([clips.frames, clips.held_out]) == torch.from_numpy(upright[:, 4:-4].copy())).all()
    assert clips.notes == (
        "2 files cropped to the middle square and scaled to 16 × 16 pixels (size): a (24 × 16), b (24 × 16)",
    )
    turned = first_frames(tmp_path / "a" / "0.png", (1, 16, 16), 1)
    assert torch.equal(((turned + 1) * 127.5).round().byte()[0, 0], torch.from_numpy(upright[:, 4:-4].copy()))


def test_warnings_about_frames_are_one_line_that_names_the_clip(tmp_path, capfd):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000], tags.tagtype[65000] = "made by hand", 2
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for index, frame in enumerate(pictures(2)):
            frame.save(tmp_path / clip / f"{index}.tif", compression="tiff_lzw", tiffinfo=tags)
    path = tmp_path / "a" / "1.tif"
    whole = path.read_bytes()
    start, notes = int.from_bytes(whole[4:8], "little"), set()
    for at in range(start, min(start + 250, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with contextlib.suppress(UserError):
            notes.update(load_videos(tmp_path, size=16, frames=2).notes)
    assert any(note.startswith("1 file read in spite of a warning: a (") for note in notes)
    assert capfd.readouterr() == ("", "")


def test_frames_that_last_longer_are_repeated_to_keep_the_pace(tmp_path):
    write(tmp_path / "a.gif", pictures(3), duration=[50, 150, 50])
    write(tmp_path / "b.gif", pictures(5, seed=1), duration=50)
    clips = load_videos(tmp_path, size=16, frames=5)
    assert len(clips) == len(clips.held_out) == 1
    both = torch.cat([clips.frames, clips.held_out])
    (repeated,) = [clip for clip in both if torch.equal(clip[1], clip[2])]
    assert torch.equal(repeated[2], repeated[3])
    assert clips.fps == 20
    assert "unequally long" in clips.notes[0]


def test_what_is_no_clip_is_left_out_counted_and_named(tmp_path):
    write(tmp_path / "good.gif", pictures(8))
    pictures(1)[0].save(tmp_path / "one.gif")
    write(tmp_path / "short.gif", pictures(3))
    write_folder(tmp_path / "mixed", [*pictures(3), *pictures(3, (8, 8))])
    pictures(1)[0].save(tmp_path / "sheet.png")
    clips = load_videos(tmp_path, size=16, frames=4)
    assert len(clips) + len(clips.held_out) == 2
    notes = "\n".join(clips.notes)
    assert "1 file of one frame, left out: one.gif" in notes
    assert "1 file shorter than a clip of 4 frames, left out: short.gif (3)" in notes
    assert "1 file of frames of several sizes, left out: mixed (16 × 16 and 8 × 8)" in notes
    assert "1 file left out, no clips: sheet.png" in notes


def test_transparency_is_put_on_the_background_and_told_once(tmp_path):
    frames = [Image.new("RGBA", (16, 16), (255, 0, 0, 0)) for _ in range(8)]
    for index, frame in enumerate(frames):
        frame.putpixel((index, 0), (0, 0, 255, 255))
    write(tmp_path / "a.apng", frames)
    clips = load_videos(tmp_path, size=16, frames=4, background="#00ff00")
    assert clips.frames[0, 0, :, 5, 5].tolist() == [0, 255, 0]
    assert clips.notes == ("1 file with transparency, put on a background of #00ff00: a.apng",)


def test_no_more_frames_are_read_than_asked_for(tmp_path):
    frames = [Image.new("L", (8, 8), index % 256) for index in range(300)]
    write(tmp_path / "long.gif", frames)
    clips = load_videos(tmp_path, size=8, frames=4, max_frames=20)
    assert len(clips) + len(clips.held_out) == 5
    assert clips.notes == ("1 file longer than 20 frames (max_frames), the rest left out: long.gif",)


@pytest.mark.parametrize("suffix", [".gif", ".apng"])
def test_a_file_cut_off_anywhere_is_one_line(tmp_path, suffix):
    whole = write(tmp_path / f"whole{suffix}", pictures(6)).read_bytes()
    cut = tmp_path / "cut" / f"a{suffix}"
    cut.parent.mkdir()
    for end in range(1, len(whole) - 13, len(whole) // 40):
        cut.write_bytes(whole[:end])
        with pytest.raises(UserError) as error:
            load_videos(cut.parent, size=16, frames=2)
        assert "\n" not in str(error.value)
        assert str(cut) in str(error.value) or "expected at least 2 clips" in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "size=0"),
        ({"frames": 1}, "frames=1: expected at least 2"),
        ({"channels": 2}, "channels=2"),
        ({"digits": 3}, "digits=3: expected 1 to 2"),
        ({"max_frames": 1}, "max_frames=1"),
        ({"background": "none"}, "background='none'"),
        ({"size": 8}, "size=8: expected at least 16"),
        ({"path": "nowhere"}, "nowhere: no such file or folder"),
        ({"path": "nowhere", "digits": 1}, "holds other clips"),
    ],
)
def test_bad_arguments_are_told(options, words):
    with pytest.raises(UserError) as error:
        load_videos(**options)
    assert words in str(error.value)


def test_folders_without_clips_are_told(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"holds no clips .* but 1 file: a\.txt"):
        load_videos(tmp_path)
    with pytest.raises(UserError, match=r"a\.txt: expected an animation or a video"):
        load_videos(tmp_path / "a.txt")
    write(tmp_path / "a.gif", pictures(5))
    with pytest.raises(UserError, match="got 0; the longest of 1 source has 5 frames: try a smaller --frames"):
        load_videos(tmp_path, frames=6)
    for part in ("train", "test"):
        write(tmp_path / "set" / part / "a.gif", pictures(5))
    with pytest.raises(UserError, match=r"parts of a data set \(test, train\): try .*train"):
        load_videos(tmp_path / "set", frames=2)


def test_a_frame_of_too_many_pixels_is_told(tmp_path):
    write(tmp_path / "a.gif", pictures(4))
    with pytest.raises(UserError, match=r"a\.gif: expected frames of at most 100 pixels \(max_pixels\)"):
        load_videos(tmp_path, frames=2, max_pixels=100)


@pytest.mark.parametrize("disposal", [1, 2])
def test_a_gif_has_no_frames_larger_than_its_file_can_hold(tmp_path, disposal):
    path = write(tmp_path / "a.gif", pictures(3), disposal=disposal)
    content = bytearray(path.read_bytes())
    # The second frame's extent.
    at = [i for i in range(len(content)) if content[i : i + 9] == b"," + bytes([0, 0, 0, 0, 16, 0, 16, 0])][1]
    content[at + 5 : at + 9] = (20_000).to_bytes(2, "little") * 2
    path.write_bytes(content)
    forget_peak()
    before = peak()
    with pytest.raises(UserError, match=r"a\.gif: cannot be read to its end: its frames are larger than the file has"):
        load_videos(tmp_path, frames=2)
    assert peak() - before < 100_000_000


def test_video_files_need_their_reader(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(UserError, match=r"a\.mp4: video files take imageio-ffmpeg, .*aigc-fast\[video\]"):
        load_videos(tmp_path)


# imageio-ffmpeg leaves the pipes of a process that has ended to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_video_files_are_read_and_damage_is_told(tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    writer = ffmpeg.write_frames(str(tmp_path / "a.mp4"), (32, 32), fps=12, macro_block_size=2)
    writer.send(None)
    for level in range(0, 200, 20):
        writer.send(np.full((32, 32, 3), level, np.uint8).tobytes())
    writer.close()
    clips = load_videos(tmp_path, size=16, frames=5)
    assert (len(clips), len(clips.held_out), clips.fps) == (1, 1, 12)
    levels = torch.cat([clips.frames, clips.held_out])[:, :, 0, 8, 8].float().flatten().sort().values
    assert (levels - torch.arange(0, 200, 20)).abs().max() < 6
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:400])
    with pytest.raises(UserError, match=r"a\.mp4: cannot be read as a video"):
        load_videos(tmp_path, size=16, frames=5)


def test_a_prediction_begins_from_a_picture_an_animation_or_a_folder(tmp_path):
    frames = pictures(6)
    write(tmp_path / "a.gif", frames)
    write_folder(tmp_path / "frames", frames)
    frames[0].save(tmp_path / "one.png")
    for name, count in (("a.gif", 4), ("frames", 4), ("one.png", 1)):
        found = first_frames(tmp_path / name, (1, 16, 16), 4)
        assert found.shape == (count, 1, 16, 16)
        torch.testing.assert_close(found[0, 0], torch.tensor(np.asarray(frames[0])) / 127.5 - 1)
    with pytest.raises(UserError, match="no such file or folder"):
        first_frames(tmp_path / "nowhere", (1, 16, 16), 4)
