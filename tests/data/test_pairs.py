"""Pairs are read as they were meant, or refused in a line; what is held out shares nothing with what is trained on."""

from __future__ import annotations

import hashlib
import json

import pytest

from aigc_fast.data import load_pairs
from aigc_fast.data.docstrings import described_functions
from aigc_fast.data.pairs import TASKS
from aigc_fast.errors import UserError
from aigc_fast.models import ByteTokenizer, CharTokenizer

PAIRS = [(f"source {number}", f"target {number} ü") for number in range(30)]


@pytest.fixture(scope="module")
def functions():
    return load_pairs()


def all_of(found):
    return sorted((*found.training, *found.held_out))


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_functions_are_some_thousands_with_the_first_line_of_their_documentation(functions):
    assert len(functions) > 3000
    pairs = dict(all_of(functions))
    assert pairs["dedent(text)"] == "Remove any common leading whitespace from every line in `text`."
    assert pairs["SequenceMatcher.ratio(self)"] == "Return a measure of the sequences' similarity (float in [0,1])."
    assert pairs["zero_() -> Tensor"] == "Fills :attr:`self` tensor with zeros."
    assert all(source.isprintable() and target.isascii() and "\n" not in target for source, target in pairs.items())
    assert functions.tokenizer.kind == "subwords"
    assert f"{len(functions)} pairs of the functions of Python and torch, 2048 subwords; held out" in functions.summary


def test_modules_are_held_out_whole(functions):
    assert 0.08 < len(functions.held_out) / len(all_of(functions)) <= 0.1
    modules = {}
    for one in described_functions():
        modules.setdefault((one.source, one.target), one.module)
    held = {modules[pair] for pair in functions.held_out}
    assert held.isdisjoint(modules[pair] for pair in functions.training)
    assert not set(functions.held_out) & set(functions.training)


def test_functions_are_the_same_each_time(functions):
    again, other = load_pairs(tokenizer=functions.tokenizer), load_pairs(seed=1, tokenizer="bytes")
    assert again == functions
    assert other.sha256 == functions.sha256
    assert other.held_out != functions.held_out


@pytest.mark.parametrize("name", TASKS)
def test_sequences_and_what_becomes_of_them(name):
    found = load_pairs(name)
    assert (len(found), len(found.held_out)) == (27_000, 3000)
    assert found.tokenizer == CharTokenizer("abcdefghijklmnopqrstuvwxyz", unknown=True)
    for source, target in found.held_out[:20]:
        assert target == {"reverse": source[::-1], "sort": "".join(sorted(source))}[name]
    assert len({source for source, _ in all_of(found)}) == 30_000


def test_a_file_of_a_tasks_name_goes_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sort").mkdir()
    assert load_pairs("sort", held_out=0).name == "sequences to sort"
    (tmp_path / "sort").rmdir()
    written(tmp_path / "sort", "a\tb\nc\td\n")
    assert all_of(load_pairs("sort", held_out=0, tokenizer="bytes")) == [("a", "b"), ("c", "d")]


def test_sources_are_read_and_not_run(tmp_path, monkeypatch):
    """A package whose modules would not run: what is documented in it is found, in order, and nothing else."""
    (tmp_path / "torch" / "nn").mkdir(parents=True)
    (tmp_path / "stdlib" / "test").mkdir(parents=True)
    written(tmp_path / "torch" / "__init__.py", 'add_docstr(x, r"""abs(input) -> Tensor\n\nComputes it all."""  + y)')
    written(
        tmp_path / "torch" / "nn" / "b.py", 'raise SystemExit\ndef f(a, *, b: int = 1) -> str:\n  """Gives it all."""'
    )
    written(
        tmp_path / "stdlib" / "a.py",
        'class C:\n  async def m(self):\n    """Has two words.\n\n    More."""\n'
        '  def _m(self):\n    """Is private."""\n'
        'def cut():\n  """A sentence that\n  goes on."""\ndef no():\n  pass\ndef g(x):\n  """ Takes an x of it. """',
    )
    written(tmp_path / "stdlib" / "broken.py", 'def h(:\n  """Not to be read."""')
    written(tmp_path / "stdlib" / "test" / "c.py", 'def t():\n  """Is left out."""')
    monkeypatch.setattr("aigc_fast.data.docstrings.sysconfig.get_path", lambda name: str(tmp_path / "stdlib"))
    monkeypatch.setattr("aigc_fast.data.docstrings.torch.__file__", str(tmp_path / "torch" / "__init__.py"))
    assert described_functions.__wrapped__() == (
        ("a", "C.m(self)", "Has two words."),
        ("a", "g(x)", "Takes an x of it."),
        ("torch.__init__", "abs(input) -> Tensor", "Computes it all."),
        ("torch.nn.b", "f(a, *, b: int=1) -> str", "Gives it all."),
    )


ROWS = "".join(f"{source}\t{target}\n" for source, target in PAIRS)
OBJECTS = [{"source": source, "target": target, "more": [1]} for source, target in PAIRS]


@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("a.tsv", ROWS, {}),
        ("a.txt", ROWS.removesuffix("\n"), {}),
        ("a.tsv", ROWS.replace("\n", "\r\n"), {}),
        ("a.tsv", "\ufeff" + ROWS, {}),
        ("a.tsv", "id\ttarget\tsource\n" + "".join(f"1\t{b}\t{a}\n" for a, b in PAIRS), {}),
        ("a.tsv", "de\ten\n" + ROWS, {"source_field": "de", "target_field": "en"}),
        ("a.jsonl", "\n".join(map(json.dumps, OBJECTS)), {}),
        (
            "a.JSONL",
            "\n\n".join(json.dumps({"q": a, "a": b}) for a, b in PAIRS),
            {"source_field": "q", "target_field": "a"},
        ),
        ("a.json", json.dumps(OBJECTS, indent=1), {}),
    ],
)
def test_files_of_pairs(tmp_path, name, text, options):
    found = load_pairs(written(tmp_path / name, text), tokenizer="characters", **options)
    assert all_of(found) == sorted(PAIRS)
    assert (found.name, found.notes, len(found.held_out)) == (name, (), 3)
    joined = "\0".join(part for pair in PAIRS for part in pair)
    assert found.sha256 == hashlib.sha256(joined.encode()).hexdigest()


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-16"])
def test_two_files_side_by_side(tmp_path, encoding):
    sources, targets = zip(*PAIRS, strict=True)
    of_sources = written(tmp_path / "a.de", "\n".join(sources), encoding)
    of_targets = written(tmp_path / "a.en", "\n".join(targets) + "\n", encoding)
    found = load_pairs(of_sources, targets=of_targets, encoding=encoding, tokenizer="bytes")
    assert all_of(found) == sorted(PAIRS)
    assert found.tokenizer == ByteTokenizer()


def test_pairs_with_an_empty_side_are_left_out_and_named(tmp_path):
    text = "a\tb\n\n\tx\nc\td\ny\t \n e\tf\n"
    found = load_pairs(written(tmp_path / "a.tsv", text), held_out=0, tokenizer="bytes")
    assert found.training == (("a", "b"), ("c", "d"), (" e", "f"))
    assert found.notes == ("3 pairs left out, with an empty side: number 2, 3, 5",)


def test_pairs_of_a_source_stay_together(tmp_path):
    text = "".join(f"source {number % 10}\ttarget {number}\n" for number in range(60))
    found = load_pairs(written(tmp_path / "a.tsv", text), held_out=0.3, tokenizer="bytes")
    assert len(found.held_out) == 18
    assert {source for source, _ in found.held_out}.isdisjoint(source for source, _ in found.training)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "a\tb\nc\n", "line 2 has 1 column: expected a source and a target with a tab between them"),
        ("a.tsv", "a\tb\nc\td\te\n", "line 2 has 3 columns"),
        ("a.tsv", "source\ttarget\tx\na\tb\n", "line 2 has 2 columns: expected 3"),
        ("a.tsv", "source\ttarget\n", "holds no pairs"),
        ("a.tsv", "", "holds no pairs"),
        ("a.tsv", "\t\n\t\n", "holds no pairs"),
        ("a.tsv", "a\0b", "holds no text"),
        ("a.jsonl", '{"source": "a", "target": "b"}\n{"source": "a", "tar', "line 2 is no JSON"),
        ("a.jsonl", '["a", "b"]', "item 1 is no JSON object"),
        ("a.jsonl", '{"source": "a"}', "line 1: 'target' is not there"),
        ("a.jsonl", '\n{"source": "a", "target": 3}', "line 2: 'target' is int"),
        ("a.json", '[{"source": "a",\n "target"]', "line 2 is no JSON"),
        ("a.jsonl", "[" * 100_000, "is no JSON"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, text, words):
    path = written(tmp_path / name, text)
    with pytest.raises(UserError, match=words) as error:
        load_pairs(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_do_not_fit_are_refused(tmp_path):
    three, two = written(tmp_path / "a", "a\nb\nc\n"), written(tmp_path / "b", "a\nb\n")
    with pytest.raises(UserError, match=r"b: has 2 lines: expected 3, one for each of .*a"):
        load_pairs(three, targets=two)
    with pytest.raises(UserError, match=r"targets=.*: expected a file of sources beside it"):
        load_pairs(targets=two)
    with pytest.raises(UserError, match=r"targets=.*: expected a file of sources beside it"):
        load_pairs("sort", targets=two)
    with pytest.raises(UserError, match="missing: cannot be read"):
        load_pairs(tmp_path / "missing")
    with pytest.raises(UserError, match="cannot be read"):
        load_pairs(tmp_path)
    with pytest.raises(UserError, match="expected UTF-8, got the byte 0xfc at offset 2, line 1"):
        load_pairs(written(tmp_path / "c.tsv", "a\tü\n", "latin-1"))
    with pytest.raises(UserError, match="encoding='klingon'"):
        load_pairs(three, encoding="klingon")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"held_out": 1}, "held_out=1: expected a share"),
        ({"held_out": float("nan")}, "held_out=nan"),
        ({"tokenizer": "words"}, "tokenizer='words': expected one of"),
        ({"vocab_size": 300}, "vocab_size=300: expected tokenizer='subwords'"),
        ({"vocab_size": 300, "tokenizer": "bytes"}, "vocab_size=300: expected tokenizer='subwords'"),
    ],
)
def test_settings_that_are_none_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        load_pairs("sort", **settings)


def test_a_single_source_can_not_be_parted(tmp_path):
    path = written(tmp_path / "a.tsv", "a\tb\na\tc\n")
    with pytest.raises(UserError, match=r"held_out=0\.1: expected at least 2 pairs of different sources"):
        load_pairs(path)
    assert len(load_pairs(path, held_out=0, tokenizer="bytes")) == 2
