"""Text is read as it was meant, or refused in a line; held-out text is of documents that training does not see."""

from __future__ import annotations

import hashlib
from pydoc_data.topics import topics

import pytest

from aigc_fast.data import load_text
from aigc_fast.data.text import split
from aigc_fast.errors import UserError
from aigc_fast.models import ByteTokenizer, CharTokenizer


@pytest.fixture(scope="module")
def corpus():
    return load_text()


def test_the_default_corpus_is_what_python_brings(corpus):
    documents = [topics[name] for name in sorted(topics)]
    assert sorted((*corpus.training, *corpus.held_out)) == sorted(documents)
    assert corpus.sha256 == hashlib.sha256("\0".join(documents).encode()).hexdigest()
    assert len(corpus) == len(corpus.training) < len(documents)
    assert (corpus.name, corpus.unit, corpus.num_classes, corpus.labels) == (
        "Python's help topics",
        "documents",
        None,
        None,
    )
    assert corpus.shape == {"tokenizer": CharTokenizer.of(corpus.training, unknown=True)}
    assert f"{len(corpus)} documents of Python's help topics, " in corpus.summary
    assert corpus.summary.endswith(f"SHA-256 {corpus.sha256[:12]}…")


def test_a_tenth_is_held_out_and_the_seed_says_which(corpus):
    whole = sum(map(len, topics.values()))
    assert 0.08 * whole < sum(map(len, corpus.held_out)) <= 0.1 * whole
    assert corpus == load_text()
    other = load_text(seed=1)
    assert other.held_out != corpus.held_out
    assert (other.sha256, other.checksum() == corpus.checksum()) == (corpus.sha256, False)
    assert load_text(held_out=0).held_out == ()
    assert load_text(tokenizer="bytes").tokenizer == ByteTokenizer()


@pytest.mark.parametrize("held_out", [-0.1, 1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(held_out):
    with pytest.raises(UserError, match=r"held_out=.*: expected a share of 0 or more, below 1"):
        load_text(held_out=held_out)


def test_documents_are_held_out_whole_in_their_order():
    documents = [str(digit) * 10 for digit in range(10)]
    training, held_out = split(documents, 0.35, seed=3)
    assert len(held_out) == 3
    assert sorted((*training, *held_out)) == documents
    assert (list(training), list(held_out)) == (sorted(training), sorted(held_out))
    assert split(["long " * 9, "short"], 0.01) == (("long " * 9,), ("short",))
    assert split(["a", "b"], 0.99) in ((("a",), ("b",)), (("b",), ("a",)))


def test_copies_are_not_held_out_unless_there_is_nothing_else(tmp_path):
    lines = [f"This is line number {number} of all." for number in range(40)]
    copies = ["\n".join(lines[:20])] * 8
    others = ["\n".join(lines[20:30]), "\n".join(lines[30:])]
    for seed in range(5):
        assert set(split([*copies, *others], 0.2, seed)[1]) <= set(others)
    for number, document in enumerate(copies):
        (tmp_path / f"{number}.txt").write_text(document)
    assert load_text(tmp_path, held_out=0.2).notes == (
        "up to 100% of a held-out document's lines stand elsewhere in the corpus too",
    )
    assert load_text().notes == ()


def test_a_single_document_is_parted_where_something_ends():
    paragraphs = "\n\n".join(f"Paragraph {number}.\nLine two." for number in range(100))
    lines, words, letters = (paragraphs.replace(*change) for change in (("\n\n", "\n"), ("\n", " "), ("\n", "")))
    for document, end in ((paragraphs, "\n\n"), (lines, "\n"), (words, " "), (letters.replace(" ", ""), "")):
        (training,), (held_out,) = split([document], 0.1)
        assert training + held_out == document
        assert training.endswith(end)
        assert 0.05 < len(held_out) / len(document) < 0.15
    assert split(["ab"], 0.1) == (("a",), ("b",))
    with pytest.raises(UserError, match="at least 2 characters to part, got 1"):
        split(["a"], 0.1)


def test_a_file_is_a_document(tmp_path):
    path = tmp_path / "one.txt"
    path.write_bytes("\ufeffA\r\nß\rc\n".encode())
    found = load_text(path, held_out=0)
    assert (found.training, found.name, found.notes) == (("A\nß\nc\n",), "one.txt", ())
    assert found.summary.startswith("1 document of one.txt, 6 characters; held out 0 documents, 0 characters; SHA-256 ")


def test_a_folder_is_read_in_natural_order_at_any_depth(tmp_path):
    for name in ("b10.txt", "b9.md", "a/c.rst", ".hidden.txt", "empty.txt", "white.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "white.txt").write_text(" \n\t")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    (tmp_path / "zeros.bin").write_bytes(b"a\0b")
    found = load_text(tmp_path, held_out=0)
    assert found.training == ("a/c.rst", "b9.md", "b10.txt")
    assert found.notes == (
        "2 files left out, empty or of white space alone: empty.txt, white.txt",
        "2 files left out, no text: picture.png, zeros.bin",
    )
    assert len(load_text(tmp_path).held_out) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("ab\nGrün".encode("latin-1"), "got the byte 0xfc at offset 5, line 2: name its encoding (--encoding latin-1"),
        ("Grün".encode("utf-16"), "got the byte 0xff at offset 0, line 1: name its encoding (--encoding utf-16"),
    ],
)
def test_another_encoding_is_refused_unless_named(tmp_path, content, expected):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    for place in (path, tmp_path):
        with pytest.raises(UserError) as caught:
            load_text(place)
        assert f"{path}: expected UTF-8, {expected}" in str(caught.value)
        assert "\n" not in str(caught.value)
    encoding = expected.split("--encoding ")[1]
    assert load_text(path, encoding=encoding, held_out=0).training[0].endswith("Grün")


def test_a_wrong_encoding_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("Grün", "utf-8")
    with pytest.raises(UserError, match=r"a\.txt: expected ascii, got the byte 0xc3 at offset 2, line 1: name another"):
        load_text(path, encoding="ascii")
    for encoding in ("klingon", "hex", "a\0", "undefined"):
        with pytest.raises(UserError, match="expected a text encoding that Python knows"):
            load_text(path, encoding=encoding)


def test_a_place_without_text_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_text(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no text: no files"):
        load_text(tmp_path)
    path = tmp_path / "empty.txt"
    for content, why in (
        (b"", "1 file left out, empty or of white space alone: empty.txt"),
        (b"\0", "1 file left out, no text"),
    ):
        path.write_bytes(content)
        for place in (path, tmp_path):
            with pytest.raises(UserError, match=f"holds no text: {why}"):
                load_text(place)
    with pytest.raises(UserError, match="tokenizer='words': expected one of characters, bytes"):
        load_text(tokenizer="words")
