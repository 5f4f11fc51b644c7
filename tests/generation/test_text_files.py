"""Text files and the records beside them."""

from __future__ import annotations

import hashlib
import json
import os

import pytest

import aigc_fast
from aigc_fast.errors import UserError
from aigc_fast.generation import Provenance, read_text_provenance, write_text
from aigc_fast.media import read_provenance

RECORD = Provenance("ngram", 7, {"prompt": "é", "length": 3})


def test_the_record_beside_a_text_tells_all(tmp_path):
    path = write_text(tmp_path / "a.txt", "é\r\nb", RECORD)
    assert path.read_bytes() == "é\r\nb".encode()
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "a.txt.json"]
    shown = json.loads((tmp_path / "a.txt.json").read_text())
    assert shown["description"] == "AI-generated text"
    assert shown["software"] == f"aigc_fast {aigc_fast.__version__}"
    assert shown["digital_source_type"].endswith("trainedAlgorithmicMedia")
    found = read_text_provenance(path)
    assert (found.model, found.seed, found.version) == ("ngram", 7, aigc_fast.__version__)
    assert found.settings == {**RECORD.settings, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert read_text_provenance(tmp_path / "a.txt.json") == read_provenance(path) == found


def test_records_do_not_stand_for_other_texts(tmp_path):
    write_text(tmp_path / "a.txt", "a", RECORD)
    write_text(tmp_path / "b.txt", "b", RECORD)
    os.replace(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(UserError, match=r"b\.txt: differs from the text that b\.txt\.json describes"):
        read_text_provenance(tmp_path / "b.txt")


@pytest.mark.parametrize("content", ["", "{}", "[1]", "null", '{"model": "a", "seed": 1}', "[" * 10**5])
def test_a_damaged_record_is_one_line(tmp_path, content):
    path = write_text(tmp_path / "a.txt", "a", RECORD)
    (tmp_path / "a.txt.json").write_text(content)
    with pytest.raises(UserError, match=r"a\.txt\.json: the record of aigc_fast is damaged") as caught:
        read_text_provenance(path)
    assert "\n" not in str(caught.value)


def test_settings_that_are_none_belong_to_no_text(tmp_path):
    path = write_text(tmp_path / "a.txt", "a", RECORD)
    shown = json.loads((tmp_path / "a.txt.json").read_text())
    (tmp_path / "a.txt.json").write_text(json.dumps({**shown, "settings": None}))
    with pytest.raises(UserError, match="differs from the text"):
        read_text_provenance(path)


def test_a_text_is_not_written_where_its_record_can_not_be(tmp_path):
    (tmp_path / "a.txt.json").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.txt\.json"):
        write_text(tmp_path / "a.txt", "a", RECORD)
    assert os.listdir(tmp_path) == ["a.txt.json"]
