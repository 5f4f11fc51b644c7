"""NumPy's .npz files of images and labels, as MNIST's."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from aigc_fast.data.notes import Notes, one_line, some, text_of
from aigc_fast.data.overheard import overheard
from aigc_fast.errors import UserError
from aigc_fast.wording import counted

_IMAGES = ("x_train", "x", "images", "data")
_LABELS = ("y_train", "y", "labels", "target")
_MAGIC_OF_ARRAY = b"\x93NUMPY"
# What zipfile, its decompressors (lzma is None where Python lacks it) and NumPy's parser of headers raise, and what
# that means: their own words are long, or advise to load pickles.
_REASONS: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((MemoryError, OverflowError), "does not fit into memory"),
    ((NotImplementedError, RuntimeError), "is encrypted, or packed in a way that Python can't unpack"),
    (
        (EOFError, zipfile.BadZipFile, zlib.error, *(() if zipfile.lzma is None else (zipfile.lzma.LZMAError,))),
        "can't be unpacked",
    ),
    ((ValueError, TypeError, KeyError, tokenize.TokenError), "is no .npy file of numbers"),
)


def read_npz(path: Path, notes: Notes) -> tuple[np.ndarray, np.ndarray | None]:
    """(images, labels) of an .npz file, under the names that Keras' mnist.npz has, or others in use.

    Args:
        path: the file.
        notes: gets the arrays that are left out.

    Returns:
        The arrays as they are; None where there are no labels.

    Raises:
        UserError: when the file is no .npz file, damaged or without images, or holds Python objects.
        OSError: when it can't be read.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            single = file.read(len(_MAGIC_OF_ARRAY)) == _MAGIC_OF_ARRAY
        raise UserError(
            f"{path}: expected an .npz file with images and labels, or a folder, got "
            f"{'a single array' if single else 'a file of another kind, or damaged'}"
        )
    try:
        with overheard() as said, path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names = list(arrays)
            chosen = [next((name for name in known if name in names), None) for known in (_IMAGES, _LABELS)]
            if chosen[0] is None:
                raise _without_images(path, arrays)
            images, labels = (None if name is None else _array(arrays, name, path) for name in chosen)
    except (ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        if isinstance(error, UserError):
            raise
        raise _damaged(path, "its list of files", error) from None
    if said:
        notes.say(f"{text_of(path.name)} read in spite of a warning: {one_line(said[0])}")
    if others := [name for name in names if name not in chosen]:
        notes.say(f"{counted(len(others), 'arrays')} left out: {some(others)}")
    return images, labels


def _array(arrays: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        array = arrays[name]
    except tuple(cls for classes, _ in _REASONS for cls in classes) as error:
        raise _damaged(path, name, error) from None
    if not isinstance(array, np.ndarray):
        raise _damaged(path, name, ValueError())
    return array


def _damaged(path: Path, what: str, error: Exception) -> UserError:
    reason = next((why for classes, why in _REASONS if isinstance(error, classes)))
    return UserError(f"{path}: damaged, or no .npz file of plain arrays: {what} {reason}")


def _without_images(path: Path, arrays: np.lib.npyio.NpzFile) -> UserError:
    names = list(arrays)
    if any(name.endswith(".npy") for name in arrays.zip.namelist()):
        return UserError(f"{path}: expected an array {' or '.join(_IMAGES)}, got {some(names)}")
    return UserError(
        f"{path}: expected an .npz file or a folder, got a zip of {counted(len(names), 'files')}"
        f"{f' ({some(names)})' if names else ''}: unpack it and name the folder"
    )
