"""Pictures as cameras, scanners and drawing programs write them: turned, transparent, deep, large, odd."""

from __future__ import annotations

import struct
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from aigc_fast.data import load
from aigc_fast.data.pictures import picture_suffixes
from aigc_fast.errors import UserError

ORIENTATION = 0x0112
# What a camera does to a picture that its orientation undoes.
TAKEN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RAMP = np.linspace(0, 1, 256).reshape(16, 16)
EXPECTED = np.round(255 * RAMP)


def has_avif():
    return ".avif" in Image.registered_extensions()


def read(folder, **settings):
    return load(folder, size=16, **settings).images[0].numpy()


def square(size=16, hole=4, channels=4):
    """A black square on black that is transparent."""
    pixels = np.zeros((size, size, channels), np.uint8)
    pixels[hole:-hole, hole:-hole, -1] = 255
    return pixels


SQUARE = np.where(square()[..., 3] == 255, 0, 255)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.jpg", {"quality": 100, "subsampling": 0}),
        ("a.png", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "jpeg", "quality": 100}),
        ("a.jpg", {"format": "MPO", "quality": 100, "subsampling": 0}),
        ("a.avif", {"quality": 100, "subsampling": "4:4:4"}),
    ],
)
def test_a_picture_is_turned_upright_once(tmp_path, name, settings):
    if name == "a.avif" and not has_avif():
        pytest.skip("this Pillow reads no AVIF")
    upright = np.kron([[250, 90], [20, 170]], np.ones((8, 8), np.uint8)).astype(np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        taken = Image.fromarray(np.stack([upright] * 3, 2))
        if orientation in TAKEN:
            taken = taken.transpose(TAKEN[orientation])
        taken.save(tmp_path / name, exif=exif, **settings)
        assert np.abs(read(tmp_path).astype(int) - upright).max() < 30, orientation


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.tga", "a.ico", "a.jp2"])
def test_transparency_is_put_on_a_background(tmp_path, name):
    Image.fromarray(square()).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    data = load(tmp_path, size=16)
    assert (data.images[0].numpy() == SQUARE).all()
    assert data.notes == (f"1 file with transparency, put on a background of white: {name}",)
    coloured = read(tmp_path, background="#ff8000")
    assert coloured[:, 0, 0].tolist() == [255, 128, 0]
    assert not coloured[:, 8, 8].any()
    assert not read(tmp_path, background="black").any()


HIDDEN = square()[..., 3] == 0
INDICES = Image.frombytes("P", (16, 16), (~HIDDEN).astype(np.uint8).tobytes())
INDICES.putpalette([0] * 768)


@pytest.mark.parametrize(
    ("picture", "name", "transparency"),
    [
        (INDICES, "a.png", 0),
        (INDICES, "a.png", b"\0\xff"),
        (INDICES, "a.gif", 0),
        (Image.fromarray(np.where(HIDDEN, 7, 0).astype(np.uint8)), "a.png", 7),
        (Image.fromarray(np.stack([np.where(HIDDEN, 7, 0).astype(np.uint8)] * 3, 2)), "a.png", (7, 7, 7)),
        (Image.fromarray(np.where(HIDDEN, 700, 0).astype(np.uint16)), "a.png", 700),
        (Image.fromarray(square(channels=2)), "a.png", None),
    ],
    ids=["palette", "palette's alpha", "gif", "grey", "colour", "16 bits", "grey and alpha"],
)
def test_every_kind_of_transparency(tmp_path, picture, name, transparency):
    picture.save(tmp_path / name, **({} if transparency is None else {"transparency": transparency}))
    data = load(tmp_path, size=16)
    assert (data.images[0].numpy() == SQUARE).all()
    assert "with transparency" in data.notes[0]


def test_half_transparent_pixels_are_mixed(tmp_path):
    pixels = np.full((16, 16, 4), 100, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = 100 * 100 / 255 + 200 * 155 / 255
    assert np.abs(read(tmp_path, background="rgb(200, 200, 200)") - expected).max() <= 1


def test_what_is_opaque_stays_as_it_is(tmp_path):
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[..., :3] = np.arange(48).reshape(16, 1, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = load(tmp_path, size=16)
    assert (data.images[0].permute(1, 2, 0).numpy() == pixels[..., :3]).all()
    assert data.notes == ()
    Image.fromarray(pixels[..., :2]).save(tmp_path / "a.png")
    assert load(tmp_path, size=16).image_shape == (1, 16, 16)


@pytest.mark.parametrize("background", ["whitish", "#0000", "transparent", ""])
def test_a_background_is_a_colour(tmp_path, background):
    with pytest.raises(UserError, match=f"background='{background}': expected a colour"):
        load(background=background)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [
        *((np.float32, white) for white in (1, 255, 65535)),
        *((np.int32, white) for white in (255, 1023, 4095, 65535)),
        *((np.uint16, white) for white in (255, 4095, 16383, 65535)),
        *((">u2", white) for white in (255, 65535)),
    ],
)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_the_pixels_say_what_white_is(tmp_path, dtype, white, compression):
    pixels = RAMP * white
    Image.fromarray(pixels.astype(dtype)).save(tmp_path / "a.tif", compression=compression)
    data = load(tmp_path, size=16)
    assert data.image_shape == (1, 16, 16)
    assert np.abs(data.images[0, 0].numpy() - EXPECTED).max() <= 1
    assert f"{white} taken for white" in data.notes[0]


def test_all_pictures_have_one_white(tmp_path):
    for name, highest in (("dark", 0.5), ("bright", 200.0)):
        Image.fromarray(np.full((16, 16), highest, np.float32)).save(tmp_path / f"{name}.tif")
    Image.fromarray(np.full((16, 16), 77, np.uint8)).save(tmp_path / "bytes.tif")
    data = load(tmp_path, size=16)
    assert data.images.float().mean((1, 2, 3)).tolist() == [200, 77, 0]


def test_scaling_does_not_change_what_white_is(tmp_path):
    pixels = np.zeros((64, 64), np.float32)
    pixels[:, 32:] = 1
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    read = load(tmp_path, size=16).images[0, 0].numpy()
    assert read[:, -1].tolist() == [255] * 16


@pytest.mark.parametrize(
    "pixels",
    [
        *(np.full((16, 16), value, np.float32) for value in (np.nan, np.inf, -0.5, 1e6)),
        *(np.full((16, 16), value, np.int32) for value in (-1, 65536)),
    ],
    ids=["nan", "inf", "negative", "large", "negative integer", "large integer"],
)
def test_pixels_of_no_range_are_named(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: expected pixels from 0 to 65535, got "):
        load(tmp_path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_of_several_pictures_the_first_is_read_and_told(tmp_path, name):
    first, second = (Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (200, 50))
    settings = {"lossless": True} if name == "a.webp" else {}
    first.save(tmp_path / name, save_all=True, append_images=[second], **settings)
    data = load(tmp_path, size=16)
    assert (data.images == 200).all()
    assert data.notes == (f"1 file of several pictures, of which the first was read: {name}",)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_every_mode_is_read(tmp_path, mode):
    picture = Image.fromarray(np.full((16, 16, 3), 255, np.uint8))
    (picture.convert("RGB") if mode == "RGBX" else picture).convert(mode).save(tmp_path / "a.tif")
    assert np.abs(read(tmp_path).astype(int) - 255).max() <= 2


def test_what_is_scaled_or_cropped_is_told(tmp_path):
    for name, size in (("square", (40, 40)), ("wide", (40, 30)), ("right", (16, 16))):
        Image.new("L", size).save(tmp_path / f"{name}.png")
    assert load(tmp_path, size=16).notes == (
        "1 file scaled to 16 × 16 pixels (size): square.png (40 × 40)",
        "1 file cropped to the middle square and scaled to 16 × 16 pixels (size): wide.png (40 × 30)",
    )


def test_pictures_by_other_names_of_their_formats(tmp_path):
    picture = Image.new("L", (16, 16), 90)
    formats = {".jfif": "JPEG", ".jpe": "JPEG", ".dib": "DIB", ".apng": "PNG", ".pnm": "PPM"}
    if has_avif():
        formats[".avif"] = "AVIF"
    for suffix, kind in formats.items():
        picture.save(tmp_path / f"a{suffix.upper()}", format=kind)
    assert set(formats) <= set(picture_suffixes())
    data = load(tmp_path, size=16)
    assert len(data) == len(formats)
    assert (data.images.float() - 90).abs().max() <= 2


def test_a_picture_by_another_format_s_name(tmp_path):
    Image.new("L", (16, 16), 90).save(tmp_path / "a.png", format="BMP")
    assert (read(tmp_path) == 90).all()


def test_warnings_are_one_line_that_names_the_picture(tmp_path, capfd):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[65000], tags.tagtype[65000] = "made by hand", 2
    picture = Image.fromarray((np.arange(256) % 251).astype(np.uint8).reshape(16, 16))
    picture.save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo=tags)
    whole = (tmp_path / "a.tif").read_bytes()
    start = int.from_bytes(whole[4:8], "little")
    notes, refused = set(), set()
    for at in range(start, min(start + 250, len(whole))):
        (tmp_path / "a.tif").write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            notes.update(load(tmp_path, size=16).notes)
        except UserError as error:
            refused.add(str(error))
    assert all("\n" not in line and line.startswith(f"{tmp_path}/a.tif: ") for line in refused)
    told = [note for note in notes if note.startswith("1 file read in spite of a warning: a.tif (")]
    assert told
    assert all("\n" not in note and len(note) < 250 for note in told)
    assert capfd.readouterr() == ("", "")


def test_reading_in_threads_leaves_the_process_as_it_was(tmp_path):
    Image.fromarray(square()).save(tmp_path / "a.png")
    Image.new("L", (16, 16)).save(tmp_path / "b.tif", compression="tiff_lzw")
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning
    threads = [
        threading.Thread(target=lambda limit=limit: [load(tmp_path, max_pixels=limit) for _ in range(10)])
        for limit in (300, 400, 500, 600)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning) == before


def test_a_large_scan_is_read(tmp_path):
    Image.new("1", (12000, 8000), 1).save(tmp_path / "a.tif", compression="group4")
    assert (read(tmp_path) == 255).all()


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_tiffs_of_more_rows_than_they_hold_are_refused(tmp_path, compression):
    """Pillow reads what is there and leaves the rest black."""
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "a.tif", compression=compression)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<I", content, content.index(struct.pack("<H", TiffImagePlugin.IMAGELENGTH)) + 8, 60_000)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image: "):
        read(tmp_path)
