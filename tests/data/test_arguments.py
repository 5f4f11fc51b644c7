"""Arguments of another kind than the readers take are named."""

from __future__ import annotations

import pytest

from aigc_fast.data import load, load_pairs, load_sounds, load_text, load_videos
from aigc_fast.errors import UserError

READERS = (load, load_sounds, load_text, load_videos, load_pairs)
SETTINGS = [
    *((load, name) for name in ("size", "channels", "background", "max_pixels")),
    *((load_sounds, name) for name in ("seconds", "sample_rate", "seed")),
    *((load_text, name) for name in ("encoding", "held_out", "seed", "tokenizer", "vocab_size")),
    *((load_videos, name) for name in ("size", "channels", "frames", "digits", "background", "max_pixels")),
    (load_videos, "max_frames"),
    *((load_pairs, name) for name in ("targets", "source_field", "target_field", "held_out", "seed", "tokenizer")),
]


@pytest.mark.parametrize("value", [[3], {}, b"3", 2.5j], ids=repr)
@pytest.mark.parametrize(("read", "setting"), SETTINGS)
def test_settings_of_another_kind_are_named(tmp_path, read, setting, value):
    # Settings are looked at before files are.
    path = None if setting in ("digits", "seed") and read is not load_pairs else tmp_path / "none.txt"
    with pytest.raises((TypeError, UserError), match=rf"^{setting}[ =]"):
        read(path, **{setting: value})


@pytest.mark.parametrize(
    ("read", "setting", "value"),
    [
        *((load, "size", 2**70), (load_videos, "size", 2**70), (load, "channels", True), (load_videos, "digits", 0)),
        *((load_sounds, "seed", 2**70), (load_text, "seed", 2**70), (load, "size", 28.5), (load_videos, "frames", 2.5)),
    ],
)
def test_numbers_that_do_not_fit_are_named(read, setting, value):
    with pytest.raises((TypeError, UserError), match=rf"^{setting}[ =]"):
        read(**{setting: value})


@pytest.mark.parametrize("read", READERS)
def test_paths_of_another_kind_are_named(read):
    for path in (3, b"/tmp", [], 2.5):
        with pytest.raises(TypeError, match=r"^path is \w+: expected a str or os\.PathLike"):
            read(path)
    for path in ("a\0b", "x" * 5000):
        with pytest.raises(UserError, match=r"^path="):
            read(path)


def test_a_folder_of_pairs_is_named(tmp_path):
    with pytest.raises(UserError, match="expected a file of pairs, got a folder"):
        load_pairs(tmp_path)
