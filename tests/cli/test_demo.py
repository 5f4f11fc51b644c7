"""`aigc-fast demo`: what it writes and what it leaves."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from commands import TINY, assert_refused, run, tree
from PIL import Image

from aigc_fast.cli.demo.watch import VIDEOS
from aigc_fast.generation import read_provenance, read_text_provenance, read_video_provenance
from aigc_fast.models import load
from aigc_fast.page import Page


def test_demo_in_short(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    out = tmp_path / "demo"
    for name in ("index.html", "dcgan-samples.png", "notes.txt", "samples/step-results.png"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"mine")
    result = run("demo", "--quick", "--out", out, "--overwrite")
    assert result.exit_code == 0, result.output
    for name in ("notes.txt", "samples/step-results.png"):
        assert (out / name).read_bytes() == b"mine"
    html = (out / "index.html").read_text(encoding="utf-8")
    assert html.count("<h1>") == 1
    assert html.count("data:image/png;base64,") == 16
    assert html.count("data:audio/wav;base64,") == html.count("<audio controls") == 5
    assert html.count("<svg") == html.count("</svg>") == 10
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "identical" in html
    for name in ("dcgan-samples", "conv-vae-manifold"):
        assert read_provenance(out / f"{name}.png").settings["command"] == "aigc-fast demo"
    assert load(out / "dcgan" / "model.safetensors").num_classes == 10
    assert load(out / "vocoder" / "model.safetensors").num_classes == 6
    for name in VIDEOS:
        with Image.open(out / f"video-{name}.apng") as animation:
            assert animation.n_frames == 12
        assert read_video_provenance(out / f"video-{name}.apng").settings["command"] == "aigc-fast demo"
        assert read_provenance(out / f"video-{name}.png").model == "video"
    for name in ("char-rnn-rnn", "char-rnn-lstm", "char-rnn-gru", "ngram"):
        assert read_text_provenance(out / f"{name}.txt").settings["command"] == "aigc-fast demo"
        assert (
            load(out / name / "model.safetensors").config
            == read_text_provenance(out / f"{name}.txt").settings["config"]
        )
        assert re.search(rf"<figcaption>{name}: \d\.\d\d bits", html)
    for name in ("gpt2", "gpt2-beams"):
        record = read_text_provenance(out / f"{name}.txt")
        assert (record.model, record.settings["command"]) == ("gpt2", "aigc-fast demo")
        assert (out / f"{name}.txt").read_text(encoding="utf-8").startswith("The value of")
    model = load(out / "gpt2" / "model.safetensors")
    said = model.generate("The value of", max_length=50, num_beams=5, no_repeat_ngram_size=2)
    assert (out / "gpt2-beams.txt").read_text(encoding="utf-8") == said
    for words in ("max_length=50, num_beams=5, no_repeat_ngram_size=2", "bits per byte", "tokens a second, by 5 beams"):
        assert words in html
    assert "SHA-256" in html
    assert read_text_provenance(out / "seq2seq.txt").settings["command"] == "aigc-fast demo"
    assert load(out / "seq2seq" / "model.safetensors").config["d_model"] == 128
    assert html.count('<td class="text"><code>') == 10


@pytest.mark.parametrize(
    "name",
    [
        "index.html",
        "dcgan-samples.png",
        "vocoder-walk.wav",
        "ngram.txt.json",
        "gpt2-beams.txt",
        "seq2seq.txt",
        "dcgan/log.jsonl",
    ],
)
def test_a_demo_replaces_nothing_unless_asked(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    assert_refused(run("demo", "--quick", "--out", tmp_path), name, "--overwrite")
    assert tree(tmp_path) == {Path(name): b"mine"}


def test_a_run_in_the_demo_s_folder_is_not_replaced_unasked(tmp_path):
    assert run("train", "dcgan", "--width", "2", *TINY, "--out", tmp_path / "dcgan").exit_code == 0
    before = tree(tmp_path)
    assert_refused(run("demo", "--quick", "--out", tmp_path), "dcgan", "holds a run already", "--overwrite")
    assert tree(tmp_path) == before


def test_page_escapes_what_it_is_given():
    page = Page("a <b>", 'c & "d"')
    page.heading("<script>")
    page.paragraph("1 < 2")
    html = page.html()
    assert "<script>" not in html
    assert "1 &lt; 2" in html
    assert "a &lt;b&gt;" in html
