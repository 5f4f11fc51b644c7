import json
import os

import pytest
import torch
from PIL import Image, PngImagePlugin

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.files import atomic, make_folder
from aigc_fast.generation import Provenance, provenance_of, read_provenance, write_png
from aigc_fast.generation.provenance import DIGITAL_SOURCE_TYPE, LABEL
from aigc_fast.models import DCGAN

RECORD = Provenance("dcgan", 7, {"count": 3, "class": None, "note": "größer ≥ 2", "config": {"width": [1, 2]}})


@pytest.mark.parametrize("channels", [1, 3])
def test_record_and_pixels_come_back(tmp_path, channels):
    image = torch.rand(channels, 5, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = write_png(tmp_path / "a.png", image, RECORD)
    assert read_provenance(path) == RECORD
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (9, 5)
        assert picture.mode == {1: "L", 3: "RGB"}[channels]


def test_anyone_can_see_that_it_is_generated(tmp_path):
    path = write_png(tmp_path / "a.png", torch.zeros(1, 4, 4), RECORD)
    with Image.open(path) as picture:
        text = picture.text
    assert text["Description"] == LABEL
    assert text["Software"] == f"aigc_fast {aigc_fast.__version__}"
    assert "seed 7" in text["Source"]
    assert DIGITAL_SOURCE_TYPE in text["XML:com.adobe.xmp"]


def test_scaled_pixels_are_squares(tmp_path):
    path = write_png(tmp_path / "a.png", torch.tensor([[[-1.0, 1.0]]]), RECORD, scale=3)
    with Image.open(path) as picture:
        assert list(picture.getdata()) == [0, 0, 0, 255, 255, 255] * 3


def test_record_of_a_model():
    model = DCGAN(width=4)
    record = provenance_of(model, 3, count=8)
    assert (record.model, record.seed) == ("dcgan", 3)
    assert record.settings == {"config": model.config, "count": 8}
    assert record.version == aigc_fast.__version__
    assert record.torch == torch.__version__
    json.dumps(record.settings)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="image"):
        write_png(path, torch.zeros(2, 4, 4), RECORD)
    with pytest.raises(TypeError, match="JSON"):
        write_png(path, torch.zeros(1, 4, 4), Provenance("dcgan", 0, {"bad": object()}))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_interrupted_atomic_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_unwritable_places_are_the_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_png(tmp_path / "missing" / "a.png", torch.zeros(1, 4, 4), RECORD)
    with pytest.raises(UserError, match="cannot write"):
        make_folder(tmp_path / "file" / "sub")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_files_without_a_good_record(tmp_path):
    with pytest.raises(UserError, match=r"cannot read image .*missing\.png: No such file or directory$"):
        read_provenance(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="cannot read image"):
        read_provenance(tmp_path / "text.png")
    Image.new("L", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(UserError, match="no record"):
        read_provenance(tmp_path / "plain.png")
    whole = write_png(tmp_path / "whole.png", torch.rand(1, 40, 40), RECORD).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot read image"):
        read_provenance(tmp_path / "cut.png")


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "dcgan"}', "null", "[" * 100_000 + "]" * 100_000])
def test_damaged_records(tmp_path, text):
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("aigc_fast", text)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=chunks)
    with pytest.raises(UserError, match="record of aigc_fast is damaged"):
        read_provenance(tmp_path / "a.png")
