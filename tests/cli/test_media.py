"""Which medium a folder is of, and text that is shown as it is made."""

from __future__ import annotations

import pytest
import torch

from aigc_fast.cli.evaluate import _medium_of_folder
from aigc_fast.errors import UserError
from aigc_fast.media.text import TEXT
from aigc_fast.models import CharRNN, CharTokenizer


@pytest.mark.parametrize(
    ("names", "medium"),
    [
        (["a.txt", "b.TXT", "a.txt.json"], "text"),
        (["a.png", "b.png", "notes.txt"], "images"),
        (["a.wav", "a.png", "licence.txt"], "audio"),
        (["notes.md"], "images"),
    ],
)
def test_text_beside_other_files_tells_of_them(tmp_path, names, medium):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert _medium_of_folder(tmp_path).name == medium


def test_a_mixture_is_still_refused(tmp_path):
    for name in ("a.png", "b.wav", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="expected images or sounds, got 1 sound and 1 image"):
        _medium_of_folder(tmp_path)


def test_text_is_shown_in_parts_as_it_is_made():
    torch.manual_seed(0)
    tokenizer = CharTokenizer("abcdefghijklmnopqrstuvwxyz")
    model, shown = CharRNN(tokenizer=tokenizer, hidden=4, embedding=3), []
    with torch.no_grad():
        model.head.bias[tokenizer.boundary] = -50
    texts = TEXT.draw(model, 2, 3, show=shown.append, prompt="hello", length=100)
    assert len(shown) > 6
    assert "".join(shown) == TEXT.joined(model, texts, None)
    assert TEXT.draw(model, 1, 3, prompt="hello", length=100) == texts[:1]
    assert [len(text) for text in texts] == [105, 105]
