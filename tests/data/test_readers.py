"""Data from every source, and what is said when a source is damaged."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits

from aigc_fast.data import digits, load, shift
from aigc_fast.errors import UserError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (9, 28, 28), dtype=np.uint8)


@pytest.fixture(scope="module")
def classes():
    return np.array([3, 1, 0, 2, 3, 1, 0, 2, 2], np.uint8)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_the_embedded_digits_are_scikit_learn_s():
    data, source = digits(size=10), load_digits()
    assert (len(data), data.image_shape, data.num_classes, data.name) == (1797, (1, 10, 10), 10, "digits")
    assert torch.equal(data.labels, torch.from_numpy(source.target).long())
    expected = torch.from_numpy(source.images * 255 / 16).round()
    assert torch.equal(data.images[:, 0, 1:9, 1:9].double(), expected)
    assert not data.images[:, :, 0].any()


def test_the_digits_are_28_pixels_wide_by_default():
    data = load()
    assert data.image_shape == (1, 28, 28)
    assert data.class_names == tuple("0123456789")
    assert torch.equal(data.images, digits().images)
    assert load(size=12, channels=3).image_shape == (3, 12, 12)


def test_batches_run_from_minus_one_to_one():
    data = digits()
    batch = data.batch(slice(0, 7))
    assert batch.dtype == torch.float32
    assert (batch.min(), batch.max()) == (-1, 1)
    assert torch.equal(((batch + 1) * 127.5).round().byte(), data.images[:7])
    assert torch.equal(data.batch_labels(torch.tensor([3, 1])), torch.tensor([3, 1]))


@pytest.mark.parametrize("names", [("x_train", "y_train"), ("x", "y"), ("images", "labels")])
@pytest.mark.parametrize("compressed", [False, True])
def test_npz(tmp_path, pixels, classes, names, compressed):
    path = tmp_path / "mnist.npz"
    arrays = {names[0]: pixels, names[1]: classes, "x_test": pixels[:2]}
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    data = load(path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels))
    assert data.labels.tolist() == classes.tolist()
    assert data.class_names == ("0", "1", "2", "3")
    assert data.name == "mnist.npz"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 6, 8), (1, 6, 8)), ((4, 6, 8, 1), (1, 6, 8)), ((4, 6, 8, 3), (3, 6, 8)), ((4, 3, 6, 8), (3, 6, 8))],
)
def test_npz_layouts_without_labels(tmp_path, shape, expected):
    array = np.random.default_rng(1).integers(0, 256, shape)
    np.savez(tmp_path / "a.npz", x=array)
    data = load(tmp_path / "a.npz")
    assert data.image_shape == expected
    assert (data.labels, data.num_classes) == (None, None)
    assert data.images.sum() == array.sum()


def test_npz_floats_are_scaled(tmp_path, pixels):
    np.savez(tmp_path / "one.npz", x=pixels / 255)
    np.savez(tmp_path / "many.npz", x=pixels.astype(np.float32))
    assert torch.equal(load(tmp_path / "one.npz").images[:, 0], torch.from_numpy(pixels))
    assert torch.equal(load(tmp_path / "many.npz").images[:, 0], torch.from_numpy(pixels))


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "expected an array x_train.*got pictures"),
        ({"x": np.zeros((2, 4), np.uint8)}, r"got shape \(2, 4\)"),
        ({"x": np.zeros((2, 4, 4, 2), np.uint8)}, "1 or 3 channels"),
        ({"x": np.zeros((0, 4, 4), np.uint8)}, "at least one image"),
        ({"x": np.full((2, 4, 4), 300)}, "0 to 255"),
        ({"x": np.full((2, 4, 4), np.nan)}, "0 to 255"),
        ({"x": np.zeros((2, 4, 4), bool)}, "numbers as pixels"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.zeros(3, int)}, "2 integer labels"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0, -1])}, "labels from 0 up"),
        ({"x": np.zeros((2, 4, 4), np.uint8), "y": np.array([0.0, 1.0])}, "integer labels"),
        ({"x": np.array([{"a": 1}], dtype=object)}, "damaged"),
    ],
)
def test_npz_that_holds_something_else_is_named(tmp_path, arrays, expected):
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(UserError, match=rf"odd\.npz.*{expected}"):
        load(tmp_path / "odd.npz")


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        ([5, 0, 4, 1, 9], ("0", "1", "4", "5", "9"), [3, 0, 2, 1, 4]),
        ([1, 2, 3, 2, 10], ("1", "2", "3", "10"), [0, 1, 2, 1, 3]),
        ([[7], [7], [2], [7], [2]], ("2", "7"), [1, 1, 0, 1, 0]),
        (["dog", "cat", "dog", "ant", "cat"], ("ant", "cat", "dog"), [2, 1, 2, 0, 1]),
        (np.array([4, 3, 2, 1, 2**63], np.uint64), ("1", "2", "3", "4", str(2**63)), [3, 2, 1, 0, 4]),
    ],
    ids=["skipping", "from 1", "a column", "words", "large"],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_labels_of_any_values_are_classes(tmp_path, pixels, labels, names, indices, order):
    labels = np.array(labels)
    np.savez(tmp_path / "a.npz", x=pixels[:5], y=labels.astype(labels.dtype.newbyteorder(order)))
    data = load(tmp_path / "a.npz")
    assert (data.class_names, data.num_classes) == (names, len(names))
    assert data.labels.tolist() == indices
    assert data.labels.dtype == torch.int64


def test_labels_of_idx_files_may_skip(tmp_path, pixels):
    (tmp_path / IMAGES).write_bytes(idx(pixels[:3]))
    (tmp_path / LABELS).write_bytes(idx(np.array([200, 3, 200], np.uint8)))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels[:3]))
    (tmp_path / "raw").mkdir()
    data = load(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (("3", "200"), [1, 0, 1])
    assert data.notes == (
        f"1 file left out beside {IMAGES}: t10k-images-idx3-ubyte",
        f"1 folder left out beside {IMAGES}: raw",
    )


def test_arrays_that_are_left_out_are_named(tmp_path, pixels, classes):
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=classes, x_test=pixels, y_test=classes)
    assert load(tmp_path / "a.npz").notes == ("2 arrays left out: x_test, y_test",)


def test_an_array_of_python_2_is_read_with_a_note(tmp_path, capfd):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("x.npy", npy("(2L, 4L, 4L)"))
    data = load(tmp_path / "a.npz")
    assert data.image_shape == (1, 4, 4)
    (note,) = data.notes
    assert note.startswith("a.npz read in spite of a warning: ")
    assert capfd.readouterr() == ("", "")


def test_npz_with_transparency_is_put_on_a_background(tmp_path):
    array = np.zeros((2, 4, 4, 4), np.uint8)
    array[0, :2, :, 3] = 255
    array[1, ..., 3] = 255
    for scale in (1, 1 / 255):
        np.savez(tmp_path / "a.npz", x=array * scale if scale < 1 else array)
        data = load(tmp_path / "a.npz", background="#ff8000")
        assert data.images[0, :, 3, 0].tolist() == [255, 128, 0]
        assert not data.images[0, :, :2].any()
        assert not data.images[1].any()
        assert data.notes == ("1 image with transparency, put on a background of #ff8000",)


def test_npz_of_zeros_and_ones_is_black_and_white(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", x=(pixels > 99).astype(np.uint8))
    data = load(tmp_path / "a.npz")
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels > 99) * torch.tensor(255, dtype=torch.uint8))
    assert data.notes == ("pixels are 0 and 1, of which 1 was taken for white",)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", ">f8", ">u2", "<i8", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npz_of_any_byte_and_memory_order(tmp_path, pixels, dtype, order):
    scale = 255 if "f" in dtype else 1
    np.savez(tmp_path / "a.npz", x=np.asarray(pixels / scale, dtype, order=order))
    assert torch.equal(load(tmp_path / "a.npz").images[:, 0], torch.from_numpy(pixels))


def assert_short(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    assert "pickle" not in text


def test_a_zip_of_pictures_is_one_short_line(tmp_path):
    for name, count in (("a.zip", 2000), ("none.npz", 0)):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            for index in range(count):
                file.writestr(f"{'pictures/' * 9}{index:05}.png", b"")
        with pytest.raises(UserError, match=rf"got a zip of {count} files.*: unpack it") as error:
            load(tmp_path / name)
        assert_short(error)
    np.savez(tmp_path / "a.npz", **{f"picture {index} {'x' * 90}": np.zeros(1) for index in range(300)})
    with pytest.raises(UserError, match=r"expected an array x_train .*\(300 in all\)") as error:
        load(tmp_path / "a.npz")
    assert_short(error)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text\n" * 99, b"\x80\x04\x95pickled", b"\x1f\x8b" + bytes(99), b"\x89HDF\r\n\x1a\n", None],
    ids=["empty", "text", "pickle", "gzip", "HDF5", "objects"],
)
@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a"])
def test_a_file_of_another_kind_is_one_short_line(tmp_path, content, name):
    if content is None:
        np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object))
        content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: (expected an .npz file|damaged, or no .npz file)") as error:
        load(tmp_path / name)
    assert_short(error)


@pytest.mark.parametrize("name", ["a.png", "a.JPG", "a.wav"])
def test_one_picture_is_no_data(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}: expected a folder .*: name the folder that it is in"):
        load(tmp_path / name)


def test_a_damaged_npz_is_named(tmp_path, pixels):
    np.savez_compressed(tmp_path / "m.npz", x=pixels)
    content = (tmp_path / "m.npz").read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 0xFF
    for number, bad in enumerate([b"", b"PK\x03\x04", content[: len(content) // 2], bytes(damaged), b"hello" * 99]):
        path = tmp_path / f"bad{number}.npz"
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"bad{number}"):
            load(path)
    np.save(tmp_path / "single.npy", pixels)
    with pytest.raises(UserError, match="single array"):
        load(tmp_path / "single.npy")


def npy(shape):
    """The bytes of an .npy file whose header says `shape`."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(32)


@pytest.mark.parametrize(
    "member",
    [npy("(2, 4, 4"), npy(f"({'1' * 40}, 4, 4)"), npy("(True, 4, 4)"), npy(f"(2, {2**62}, 4)"), b"hello", b""],
    ids=["open", "digits", "bool", "large", "text", "empty"],
)
@pytest.mark.parametrize("name", ["x.npy", "x", "y.npy"])
def test_an_npz_with_a_damaged_member_is_named(tmp_path, member, name):
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as file:
        if name == "y.npy":
            file.writestr("x.npy", npy("(2, 4, 4)"))
        file.writestr(name, member)
    with pytest.raises(UserError, match=r"bad\.npz: damaged, or no \.npz file"):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.filterwarnings("ignore")
def test_any_damage_to_an_npz_is_named_or_harmless(tmp_path, compression):
    path = tmp_path / "bad.npz"
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x.npy", npy("(2, 4, 4)"))
    whole = path.read_bytes()
    refused = set()
    for at, bits in itertools.product(range(len(whole)), (1, 255)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ bits]) + whole[at + 1 :])
        try:
            load(path)
        except UserError as error:
            refused.add(str(error).partition(": ")[2])
    assert any("encrypted" in reason for reason in refused)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx(tmp_path, pixels, classes, zipped, dotted):
    for name, array in ((IMAGES, pixels), (LABELS, classes)):
        name = name.replace("-idx", ".idx") if dotted else name
        content = idx(array)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    data = load(tmp_path)
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels))
    assert data.labels.tolist() == classes.tolist()


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_idx_files_are_named(tmp_path, pixels, classes, zipped):
    pack = gzip.compress if zipped else bytes
    suffix = ".gz" * zipped
    (tmp_path / (LABELS + suffix)).write_bytes(pack(idx(classes)))
    path = tmp_path / (IMAGES + suffix)
    good = idx(pixels)
    promised = struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(10)
    bad = [b"", good[:3], good[:10], good[:-1], good + b"x", b"\x89PNG" + good, promised, b"\0\0\x0d\x03" + good[4:]]
    bad.append(struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1))
    bad.append(struct.pack(">BBBB255I", 0, 0, 8, 255, *[1] * 255) + b"x")
    whole = pack(good)
    files = [pack(content) for content in bad] + ([whole[: len(whole) // 2], b"hello", good] if zipped else [])
    for content in files:
        path.write_bytes(content)
        with pytest.raises(UserError, match=IMAGES):
            load(tmp_path)


def test_idx_files_that_do_not_belong_together_are_named(tmp_path, pixels, classes):
    (tmp_path / IMAGES).write_bytes(idx(pixels))
    with pytest.raises(UserError, match=f"{LABELS}.*is not"):
        load(tmp_path)
    (tmp_path / LABELS).write_bytes(idx(classes[:-1]))
    with pytest.raises(UserError, match="9 integer labels"):
        load(tmp_path)


def test_a_folder_of_grey_images(tmp_path, pixels):
    for index, array in enumerate(pixels):
        write_png(tmp_path / f"{index}.png", array)
    (tmp_path / "notes.txt").write_text("not an image")
    data = load(tmp_path)
    assert data.image_shape == (1, 28, 28)
    assert data.labels is None
    assert torch.equal(data.images[:, 0], torch.from_numpy(pixels))


def test_subfolders_are_classes(tmp_path):
    for index, name in enumerate(["cat", "ant", "bee"]):
        for part in range(index + 1):
            write_png(tmp_path / name / f"{part}.png", np.full((28, 28), 40 * index, np.uint8))
    (tmp_path / "empty").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert data.images[:, 0, 0, 0].tolist() == [40, 40, 80, 80, 80, 0]


def test_odd_sizes_and_modes_become_one_size(tmp_path):
    write_png(tmp_path / "wide.png", np.full((10, 37), 200, np.uint8))
    write_png(tmp_path / "tall.jpg", np.full((51, 13, 3), (200, 100, 50), np.uint8))
    Image.fromarray(np.full((9, 9), 1, np.uint8)).convert("P").save(tmp_path / "palette.gif")
    Image.fromarray(np.full((8, 8, 4), 255, np.uint8)).save(tmp_path / "alpha.png")
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    data = load(tmp_path, size=16)
    assert data.image_shape == (3, 16, 16)
    means = dict(zip(sorted(path.name for path in tmp_path.iterdir()), data.images.float().mean((2, 3)), strict=True))
    torch.testing.assert_close(means["wide.png"], torch.full((3,), 200.0))
    torch.testing.assert_close(means["tall.jpg"], torch.tensor([200.0, 100.0, 50.0]), atol=4, rtol=0)
    torch.testing.assert_close(means["deep.png"], torch.full((3,), 155.0), atol=1, rtol=0)


def test_images_are_cropped_to_the_middle_square(tmp_path):
    picture = np.zeros((10, 30), np.uint8)
    picture[:, 10:20] = 250
    write_png(tmp_path / "a.png", picture)
    assert load(tmp_path, size=10).images.min() >= 249


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_chosen(tmp_path, channels):
    write_png(tmp_path / "folder" / "a.png", np.full((8, 8, 3), (255, 0, 0), np.uint8))
    np.savez(tmp_path / "a.npz", x=np.full((2, 8, 8, 3), (255, 0, 0), np.uint8))
    np.savez(tmp_path / "grey.npz", x=np.full((2, 8, 8), 76, np.uint8))
    for name in ("folder", "a.npz", "grey.npz"):
        data = load(tmp_path / name, channels=channels, size=8)
        assert data.image_shape == (channels, 8, 8)
        assert data.images[0, 0, 0, 0] == (255 if channels == 3 and name != "grey.npz" else 76)


def test_colours_become_the_greys_of_pillow(tmp_path):
    """A grid of colours, and those whose luma lies next to the middle between two greys."""
    levels = np.arange(0, 256, 3)
    colours = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    near = colours[np.abs(luma % 1 - 0.5) < 1e-3]
    assert len(near) > 100
    for index, chosen in enumerate((colours[::7], near)):
        picture = chosen[: len(chosen) // 10 * 10].reshape(10, -1, 3)
        np.savez(tmp_path / f"{index}.npz", x=picture[None])
        found = load(tmp_path / f"{index}.npz", channels=1).images[0, 0].numpy()
        np.testing.assert_array_equal(found, np.asarray(Image.fromarray(picture).convert("L")))


def test_a_damaged_image_is_named(tmp_path, pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels[0]).save(buffer, "PNG")
    for bad in (b"", b"hello", buffer.getvalue()[:60], buffer.getvalue()[:-200]):
        (tmp_path / "bad.png").write_bytes(bad)
        with pytest.raises(UserError, match=r"bad\.png"):
            load(tmp_path)


@pytest.mark.parametrize("orientation", range(9))
def test_images_are_turned_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    picture.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as saved:
        expected = ImageOps.fit(ImageOps.exif_transpose(saved), (4, 4), Image.Resampling.LANCZOS)
    assert load(tmp_path, size=4).images[0, 0].tolist() == np.asarray(expected).tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_metadata_of_an_image_is_named_or_harmless(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a house", 1.5
    picture = Image.fromarray(np.full((4, 6), 200, np.uint8))
    picture.save(tmp_path / "a.jpg", exif=exif, quality=100)
    whole = (tmp_path / "a.jpg").read_bytes()
    start = whole.index(b"Exif")
    read, refused = 0, []
    for at in range(start, start + len(exif.tobytes())):
        for value in (0, 2, 255):
            (tmp_path / "a.jpg").write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                read += abs(int(load(tmp_path, size=4).images.float().mean()) - 200) < 3
            except UserError as error:
                refused.append(str(error))
    assert all("a.jpg: cannot be read as an image" in message for message in refused)
    assert read > len(exif.tobytes())


@pytest.mark.parametrize("error", [TypeError("bad"), struct.error("bad"), AttributeError("bad")])
def test_what_pillow_runs_into_is_named(tmp_path, pixels, monkeypatch, error):
    def fail(picture):
        raise error

    write_png(tmp_path / "a.png", pixels[0])
    monkeypatch.setattr(Image.Image, "getexif", fail)
    with pytest.raises(UserError, match=r"a\.png: cannot be read as an image: bad"):
        load(tmp_path)


def test_the_most_pixels_are_a_setting(tmp_path, monkeypatch):
    write_png(tmp_path / "big.png", np.full((20, 20), 200, np.uint8))
    with pytest.raises(UserError, match=r"big\.png: expected at most 300 pixels \(max_pixels\), got more"):
        load(tmp_path, max_pixels=300)
    with pytest.raises(UserError, match=r"big\.png: .* 100 pixels"):
        load(tmp_path, max_pixels=100)
    with pytest.raises(UserError, match="max_pixels=0"):
        load(tmp_path, max_pixels=0)
    # Beyond Pillow's own limit, where it warns, and beyond its double, where it refuses.
    for limit in (300, 100):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert (load(tmp_path, size=4).images == 200).all()
        assert limit == Image.MAX_IMAGE_PIXELS


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing: no such file or folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="no IDX files and no images"):
        load(tmp_path)


@pytest.mark.parametrize(("settings", "expected"), [({"size": 0}, "size=0"), ({"channels": 2}, "channels=2")])
def test_wrong_settings_are_named(settings, expected):
    with pytest.raises(UserError, match=expected):
        load(**settings)


def test_a_size_beyond_memory_is_named(tmp_path, pixels):
    write_png(tmp_path / "folder" / "a.png", pixels[0])
    np.savez(tmp_path / "a.npz", x=pixels)
    for path, count in ((None, 1797), (tmp_path / "a.npz", 9), (tmp_path / "folder", 1)):
        with pytest.raises(UserError, match=rf"size=100000000: {count} images"):
            load(path, size=10**8)


def test_arrays_are_scaled_when_asked(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", x=np.full((2, 30, 20), 99, np.uint8))
    assert load(tmp_path / "a.npz").image_shape == (1, 30, 20)
    scaled = load(tmp_path / "a.npz", size=16)
    assert scaled.image_shape == (1, 16, 16)
    assert (scaled.images == 99).all()
    assert scaled.notes == ("stretched from 20 × 30 to 16 × 16 pixels",)


def test_a_summary_tells_what_the_data_is(tmp_path, pixels):
    assert digits().summary == (
        "1797 images of digits, 28 × 28 pixels in grey, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    )
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 5, 7, 3), np.uint8))
    assert load(tmp_path / "a.npz").summary == "1 image of a.npz, 7 × 5 pixels in colour, without classes"
    np.savez(tmp_path / "a.npz", x=np.zeros((50, 5, 7)), y=np.arange(50))
    assert load(tmp_path / "a.npz").summary.endswith("18, 19, … (50 in all)")


def test_shifts_move_images_within_the_distance():
    images = torch.zeros(200, 2, 9, 11)
    images[:, 0, 4, 5], images[:, 1, 4, 5] = 1, 2
    moved = shift(images, 2, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    where = moved[:, 0].flatten(1).argmax(1)
    rows, columns = where // 11 - 4, where % 11 - 5
    assert sorted(set(rows.tolist())) == sorted(set(columns.tolist())) == [-2, -1, 0, 1, 2]
    assert shift(images, 0) is images


def test_shifts_repeat_the_border():
    assert torch.equal(shift(torch.ones(5, 1, 4, 4), 3), torch.ones(5, 1, 4, 4))
