"""What a folder is taken for: classes, no classes, parts of a data set; and what is told of the rest."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from aigc_fast.data import load
from aigc_fast.data.folder import find_files, natural
from aigc_fast.data.notes import Notes
from aigc_fast.errors import UserError


@pytest.fixture
def made(tmp_path):
    """Makes files by their names, pictures where they are called so, folders where they end in a slash."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("/"):
                path.mkdir()
            elif name.lower().endswith(".png") and not path.name.startswith("._"):
                Image.fromarray(np.full((28, 28), 100, np.uint8)).save(path)
            else:
                path.write_bytes(b"no picture")
        return tmp_path

    return make


def classes_of(folder):
    data = load(folder)
    counts = data.labels.bincount().tolist() if data.labels is not None else [len(data)]
    return dict(zip(data.class_names or (None,), counts, strict=True)), data.notes


def test_a_picture_beside_class_folders_is_left_out_and_named(made):
    folder = made("cat/a.png", "cat/b.png", "dog/a.png", "preview.png", "cat/notes.txt", "README", "bird/")
    assert classes_of(folder) == (
        {"cat": 2, "dog": 1},
        (
            "1 file left out, beside the class folders: preview.png",
            "1 folder without pictures: bird",
            "2 files left out, no pictures by their names: README, cat/notes.txt",
        ),
    )


def test_folders_beside_more_pictures_are_left_out_and_named(made):
    folder = made("a.png", "b.png", "old/a.png", "old/b.heic")
    assert classes_of(folder) == (
        {None: 2},
        (
            "1 file left out, in subfolders beside pictures without a class: old/a.png",
            "1 file left out, no pictures by their names: old/b.heic",
        ),
    )


def test_the_first_few_of_many_are_named(made):
    folder = made("a.png", *(f"{index}.heic" for index in range(12)))
    assert load(folder).notes == (
        "12 files left out, no pictures by their names: 0.heic, 1.heic, 2.heic, … (12 in all)",
    )


@pytest.mark.parametrize("deep", ["dog/part1/a.png", "dog/x/y/z/a.png"])
def test_a_class_s_pictures_may_lie_deeper(made, deep):
    folder = made("cat/a.png", deep, "dog/part2/b.png")
    assert classes_of(folder) == ({"cat": 1, "dog": 2}, ())


@pytest.mark.parametrize(
    ("names", "likely"),
    [
        (["train/cat/a.png", "train/dog/a.png"], "train"),
        (["train/cat/a.png", "test/cat/a.png", "val/cat/a.png"], "train"),
        (["test/a.png", "train/a.png", "cover.png"], "train"),
        (["Testing/glioma/a.png", "Training/glioma/a.png"], "Training"),
        (["seg_pred/a.png", "seg_test/sea/a.png", "seg_train/sea/a.png"], "seg_train"),
        (["val2017/a.png", "train2017/a.png"], "train2017"),
        (["valid/cat/a.png"], "valid"),
        (["archive/cat/a.png", "archive/dog/a.png"], "archive"),
        (["archive/images/cat/a.png", "archive/images/dog/x/a.png", "readme.md"], "archive/images"),
    ],
)
def test_a_likely_folder_below_is_suggested(made, names, likely):
    folder = made(*names)
    with pytest.raises(UserError, match="expected classes as subfolders, got ") as error:
        load(folder)
    assert str(error.value).endswith(f"try {folder / likely}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "likely"), [("MNIST/raw/train-images-idx3-ubyte.gz", "MNIST/raw"), ("keras/mnist.npz", "keras/mnist.npz")]
)
def test_arrays_below_are_suggested(made, name, likely):
    folder = made(name)
    with pytest.raises(UserError, match="holds no IDX files and no images, but 1 file") as error:
        load(folder)
    assert str(error.value).endswith(f"{name}; try {folder / likely}")


def test_a_class_called_train_is_one_among_others(made):
    assert classes_of(made("plane/a.png", "train/a.png", "whale/a.png"))[0] == {"plane": 1, "train": 1, "whale": 1}


def test_one_class_is_a_class(made):
    assert classes_of(made("images/a.png", "images/b.png")) == ({"images": 2}, ())


def test_what_programs_leave_behind_is_ignored(made):
    folder = made(
        *("cat/a.png", "cat/._a.png", "cat/.DS_Store", "cat/Thumbs.db", "cat/.ipynb_checkpoints/a-checkpoint.png"),
        *("dog/a.png", ".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/cat/._a.png", "__MACOSX/b.png"),
        *(".hidden/a.png", "desktop.ini", "@eaDir/a.png", "$RECYCLE.BIN/a.png", "#recycle/a.png", "found.000/a.png"),
        *("Network Trash Folder/a.png", "cat/a.png:Zone.Identifier", "cat/~$a.png", "cat/Picasa.ini", "cat/a.txt~"),
        *("cat/#a.txt#", "cat/Thumbs.db:encryptable"),
    )
    assert classes_of(folder) == ({"cat": 1, "dog": 1}, ())


def test_what_programs_leave_beside_pictures_is_ignored(made):
    assert classes_of(made("0.png", "._0.png", ".DS_Store", ".ipynb_checkpoints/a.png")) == ({None: 1}, ())


def test_classes_are_in_natural_order(made):
    folder = made(*(f"{index}/a.png" for index in range(12)))
    data = load(folder)
    assert data.class_names == tuple(str(index) for index in range(12))
    assert data.labels.tolist() == list(range(12))


def test_natural_order():
    names = ["img10", "Img2", "img1", "a", "B", "10", "9", "x1y10", "x1y9", "007", "7", ""]
    assert sorted(names, key=natural) == [
        *("", "007", "7", "9", "10"),
        *("a", "B", "img1", "Img2", "img10", "x1y9", "x1y10"),
    ]


def test_links_are_followed_but_not_in_circles(made):
    folder = made("cat/a.png", "dog/a.png")
    os.symlink(folder, folder / "cat" / "again")
    os.symlink(folder / "dog", folder / "hound")
    os.symlink("nowhere.png", folder / "dog" / "gone.png")
    found, notes = classes_of(folder)
    assert (found["dog"], found["hound"]) == (1, 1)
    assert notes == ("2 files left out, no pictures by their names: dog/gone.png, hound/gone.png",)


@pytest.mark.skipif(os.name == "nt" or os.sys.platform == "darwin", reason="names are text there")
def test_names_that_are_no_text_can_be_told(made):
    folder = made("[red]/a.png", "b\nc/a.png", "b\nc/note\n.txt")
    os.mkdir(os.fsencode(folder) + b"/\xff")
    os.rename(folder / "[red]" / "a.png", os.fsencode(folder) + b"/\xff/\xfe.png")
    data = load(folder)
    assert data.class_names == ("\\xff", "b\nc")
    for line in (data.summary, *data.notes):
        assert line.encode()
        assert "\n" not in line


def test_sounds_are_found_in_the_same_way(tmp_path):
    for name in ("oh/a.wav", "oh/deep/b.WAV", "ah/a.wave", "take.wav", "x.flac"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    notes = Notes(tmp_path)
    found = find_files(tmp_path, (".wav", ".wave"), notes, "WAV file")
    assert [(path.name, name) for path, name in found] == [("a.wave", "ah"), ("a.wav", "oh"), ("b.WAV", "oh")]
    assert notes.lines == (
        "1 file left out, beside the class folders: take.wav",
        "1 file left out, no WAV files by their names: x.flac",
    )
