"""The n-gram model agrees with a literal reading of Chen and Goodman, and with kenlm on the files that both read."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aigc_fast.data import load_text
from aigc_fast.errors import UserError
from aigc_fast.models import MODELS, BPETokenizer, ByteTokenizer, CharTokenizer, NGram, WordTokenizer, load, save
from aigc_fast.models.storage import read_tensors, write_tensors
from aigc_fast.models.text.arpa import words
from aigc_fast.models.text.kneser_ney import FALLBACK_DISCOUNTS

BEGIN, END = "<s>", "</s>"
RHYME = (
    "one for the master\nand one for the dame\nand one for the little boy\nwho lives down the lane\n",
    "baa baa black sheep\nhave you any wool\nyes sir yes sir\nthree bags full\n",
    "a",
    "",
    "the the the the the lane lane lane, and so on and so forth \\ and back",
)
MANY_ORDERS = "".join(f"ngram {n}=1\n" for n in range(2, 102))


class KneserNey:
    """Interpolated modified Kneser-Ney, word for word, by dictionaries; texts are sequences of words."""

    def __init__(self, texts, order, vocabulary):
        self.order, self.vocabulary = order, vocabulary
        padded = [(BEGIN, *text, END) for text in texts]
        grams = [
            tuple(text[i : i + n] for text in padded for i in range(len(text) - n + 1)) for n in range(1, order + 1)
        ]
        raw = [Counter(of_order) for of_order in grams]
        self.counts = []
        for n in range(1, order + 1):
            counts = dict(raw[n - 1])
            if n < order:
                before = defaultdict(set)
                for gram in raw[n]:
                    before[gram[1:]].add(gram[0])
                counts = {g: count if g[0] == BEGIN else len(before[g]) for g, count in counts.items()}
            counts.pop((BEGIN,), None)
            self.counts.append(counts)
        self.discounts = [self._discounts(counts) for counts in self.counts]
        self.followers = [defaultdict(dict) for _ in range(order)]
        for n, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.followers[n][gram[:-1]][gram[-1]] = count

    @staticmethod
    def _discounts(counts):
        n = [sum(count == k for count in counts.values()) for k in range(5)]
        if 0 in n[1:4]:
            return (0, *FALLBACK_DISCOUNTS)
        y = n[1] / (n[1] + 2 * n[2])
        found = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
        return (0, *(found if all(0 < d <= k for k, d in enumerate(found, 1)) else FALLBACK_DISCOUNTS))

    def probability(self, context, word):
        if BEGIN in context:
            context = context[context.index(BEGIN) :]
        return self._of(tuple(context)[max(len(context) - self.order + 1, 0) :], word)

    def _of(self, context, word):
        n = len(context)
        shorter = self._of(context[1:], word) if n else 1 / len(self.vocabulary)
        followers = self.followers[n].get(context)
        if not followers:
            return shorter
        discounts, total = self.discounts[n], sum(followers.values())
        left = sum(discounts[min(count, 3)] for count in followers.values()) / total
        count = followers.get(word, 0)
        return (count - discounts[min(count, 3)]) / total + left * shorter


def literal(texts, order, tokenizer):
    return KneserNey(texts, order, range(tokenizer.vocab_size))


def words_of(tokenizer, text):
    names = words(tokenizer)
    return [names[token] for token in tokenizer.encode(text, strict=False)]


def probabilities(model, context):
    """Of every token after a beginning of a document."""
    tokens = model.tokenizer.encode(context, strict=False)
    each = [torch.tensor([*tokens, token]) for token in range(model.tokenizer.vocab_size)]
    return torch.stack([model.log_probabilities(row)[-1] for row in each]).double().exp()


@pytest.fixture(params=[1, 2, 3, 5, 9])
def order(request):
    return request.param


@pytest.fixture(params=["characters", "bytes"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else CharTokenizer.of(RHYME, unknown=True)


@pytest.fixture
def model(tokenizer, order):
    return NGram(tokenizer=tokenizer, order=order).fit(RHYME)


@pytest.mark.parametrize("text", [*RHYME, "one for the sheep", "xyz", "the lane é lane", "\n\n\n\n"])
def test_the_probabilities_are_those_of_the_formula(model, text):
    tokenizer = model.tokenizer
    reference = literal([words_of(tokenizer, part) for part in RHYME], model.order, tokenizer)
    found = [*words_of(tokenizer, text), END]
    expected = [math.log(reference.probability([BEGIN, *found[:i]], word)) for i, word in enumerate(found)]
    tokens = torch.tensor([*tokenizer.encode(text, strict=False), tokenizer.boundary])
    torch.testing.assert_close(model.log_probabilities(tokens), torch.tensor(expected), rtol=2e-6, atol=2e-6)
    assert model.score(text) == pytest.approx(sum(expected), rel=1e-5)
    assert model.score(text, end=False) == pytest.approx(sum(expected[:-1]), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("context", ["", "t", "one for th", "the the", "zq", "baa baa black sheep\nhave", "é"])
def test_the_probabilities_after_anything_sum_to_1(model, context):
    found = probabilities(model, context)
    assert found.sum().item() == pytest.approx(1, abs=1e-6)
    assert (found > 0).all()


CORPUS = st.lists(st.text("ab", max_size=12), min_size=1, max_size=6).filter(any)


@given(CORPUS, st.integers(1, 5), st.text("abc", max_size=8))
def test_the_formula_holds_for_any_corpus(texts, order, text):
    tokenizer = CharTokenizer("abz", unknown=True)
    model = NGram(tokenizer=tokenizer, order=order).fit(texts)
    reference = literal([words_of(tokenizer, part) for part in texts], order, tokenizer)
    found = [*words_of(tokenizer, text), END]
    expected = sum(math.log(reference.probability([BEGIN, *found[:i]], word)) for i, word in enumerate(found))
    assert model.score(text) == pytest.approx(expected, rel=1e-5)
    assert probabilities(model, text).sum().item() == pytest.approx(1, abs=1e-6)


def test_a_worked_example():
    # Four bigrams, each once: a a, a b, <s> a, b </s>; too few for discounts, so 0.5 is taken off each.
    # Single characters by how many others come before: a after <s> and a; b after a; </s> after b. Two of 1, one of 2.
    # No single one of 3: 0.5 and 1 are taken off, 2 of 4 are left for a quarter to each of a, b, </s> and unknown.
    model = NGram(tokenizer=CharTokenizer("ab", unknown=True), order=2).fit(["aab"])
    a, b, end = (1 / 4 + 1 / 8, 1 / 8 + 1 / 8, 1 / 8 + 1 / 8)
    expected = [0.5 / 1 + 0.5 * a, 0.5 / 2 + 0.5 * a, 0.5 / 2 + 0.5 * b, 0.5 / 1 + 0.5 * end]
    found = model.log_probabilities(torch.tensor([0, 0, 1, 2])).exp()
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
    assert model.sizes.tolist() == [4, 4]


def test_discounts_are_estimated_where_there_is_enough():
    documents = load_text()
    texts, text = documents.training[:6], documents.held_out[0][:300]
    tokenizer = CharTokenizer.of(texts, unknown=True)
    model = NGram(tokenizer=tokenizer, order=4).fit(texts)
    reference = literal([words_of(tokenizer, part) for part in texts], 4, tokenizer)
    assert [found[1:] != FALLBACK_DISCOUNTS for found in reference.discounts[1:]] == [True] * 3
    found = [*words_of(tokenizer, text), END]
    expected = sum(math.log(reference.probability([BEGIN, *found[:i]], word)) for i, word in enumerate(found))
    assert model.score(text) == pytest.approx(expected, rel=1e-6)
    assert probabilities(model, text).sum().item() == pytest.approx(1, abs=1e-6)


def test_documents_stand_side_by_side(model):
    boundary = model.tokenizer.boundary
    texts = ("one for all", "", "the lane")
    tokens = torch.tensor([token for text in texts for token in (*model.tokenizer.encode(text), boundary)])
    assert model.log_probabilities(tokens).sum().item() == pytest.approx(sum(map(model.score, texts)), rel=1e-5)
    assert model.log_probabilities(tokens[:0]).shape == (0,)


def test_a_model_that_was_not_fitted_knows_nothing(tokenizer, order):
    model = NGram(tokenizer=tokenizer, order=order)
    assert model.score("abc", end=False) == pytest.approx(-3 * math.log(tokenizer.vocab_size))
    assert len(model.generate(length=5, generator=torch.Generator().manual_seed(3))) <= 5


def test_a_fit_forgets_the_one_before(tokenizer):
    first, second = (NGram(tokenizer=tokenizer, order=3) for _ in range(2))
    first.fit(["another text"]).fit(RHYME)
    second.fit(iter(RHYME))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_what_cannot_be_fitted_is_refused():
    model = NGram(tokenizer=CharTokenizer("ab"))
    for texts in ([], ["", ""]):
        with pytest.raises(UserError, match="texts: expected a document that is not empty, got none"):
            model.fit(texts)
    with pytest.raises(UserError, match="got a single string"):
        model.fit("abab")
    with pytest.raises(UserError, match="unknown 'c'"):
        model.fit(["abc"])
    with pytest.raises(ValueError, match="order=0: expected at least 1"):
        NGram(tokenizer=CharTokenizer("ab"), order=0)
    with pytest.raises(ValueError, match="order=101: expected at most 100"):
        NGram(tokenizer=CharTokenizer("ab"), order=101)
    with pytest.raises(TypeError, match="order is float"):
        NGram(tokenizer=CharTokenizer("ab"), order=2.5)


def test_a_corpus_may_be_shorter_than_what_is_looked_back_at():
    model = NGram(tokenizer=CharTokenizer("ab"), order=6).fit(["a"])
    assert model.sizes.tolist() == [3, 2, 1, 0, 0, 0]
    assert model.generate(length=5, temperature=0) == "a"
    assert probabilities(model, "aaaaaaaa").sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_precision_tells_and_draws_the_same(dtype):
    model = NGram(tokenizer=CharTokenizer.of(RHYME), order=4).fit(RHYME).to(dtype)
    assert model.dtype == model.log_probabilities(torch.tensor([0])).dtype == dtype
    assert model.generate("baa baa black sh", length=3, temperature=0) == "eep"


class TestDrawing:
    @pytest.fixture(scope="class")
    def model(self):
        return NGram(tokenizer=CharTokenizer.of(RHYME, unknown=True), order=4).fit(RHYME)

    def test_a_seed_gives_the_same_text_and_a_longer_one_begins_with_it(self, model):
        def text(seed, **settings):
            return model.generate(generator=torch.Generator().manual_seed(seed), **{"length": 60, **settings})

        assert text(1) == text(1) != text(2)
        assert text(1, length=80).startswith(text(1))
        assert text(1, top_k=1) == text(2, top_p=1e-9) == text(3, temperature=0)
        torch.manual_seed(5)
        first = model.generate(length=60)
        torch.manual_seed(5)
        assert "".join(model.stream(length=60)) == first

    def test_text_follows_its_prompt(self, model):
        assert model.generate("baa baa black sh", length=3, temperature=0) == "eep"
        assert model.generate("three bags ful", length=9, top_k=1) == "l\n"

    def test_tokens_are_drawn_by_their_probabilities(self, model):
        generator = torch.Generator().manual_seed(0)
        drawn = [model.generate("one for the ", length=1, generator=generator) for _ in range(500)]
        expected = probabilities(model, "one for the ")
        for character in "mdl":
            token = model.tokenizer.encode(character)[0]
            assert drawn.count(character) / 500 == pytest.approx(expected[token].item(), abs=0.08)

    def test_what_is_unknown_is_never_drawn(self):
        model = NGram(tokenizer=CharTokenizer("ab", unknown=True), order=2).fit(["xyzxyz" * 9, "ab"])
        drawn = model.generate(length=300, generator=torch.Generator().manual_seed(0))
        assert set(drawn) <= set("ab")

    def test_an_order_of_one_looks_at_nothing_before(self):
        model = NGram(tokenizer=CharTokenizer("ab"), order=1).fit(["ab"])
        text = model.generate("a", length=200, temperature=0.1, generator=torch.Generator().manual_seed(0))
        assert len(text) < 200


class TestFiles:
    @pytest.fixture(autouse=True)
    def _registered(self, monkeypatch):
        monkeypatch.setitem(MODELS, NGram.name, NGram)

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "model.arpa"

    @pytest.fixture
    def written(self, path):
        NGram(tokenizer=CharTokenizer.of(RHYME, unknown=True), order=3).fit(RHYME).to_arpa(path)
        return path

    @staticmethod
    def rewritten(path, change):
        """A model's file, changed, with a checksum that fits."""
        save(NGram(tokenizer=CharTokenizer.of(RHYME), order=3).fit(RHYME), path)
        tensors, metadata = read_tensors(path)
        change(tensors, metadata)
        write_tensors(path, tensors, metadata)
        return path

    def test_a_loaded_model_is_the_saved_one(self, model, tmp_path):
        save(model, tmp_path / "model", {"seed": 3})
        loaded = load(tmp_path / "model")
        assert type(loaded) is NGram
        assert (loaded.order, loaded.tokenizer, loaded.training) == (model.order, model.tokenizer, False)
        for name, value in model.state_dict().items():
            assert torch.equal(value, loaded.state_dict()[name]), name
        assert loaded.score(RHYME[0]) == model.score(RHYME[0])
        generator = torch.Generator
        assert loaded.generate(length=20, generator=generator().manual_seed(1)) == model.generate(
            length=20, generator=generator().manual_seed(1)
        )

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("sizes", lambda sizes: sizes[:-1]),
            ("sizes", lambda sizes: -sizes),
            ("sizes", lambda sizes: sizes.int()),
            ("sizes", lambda sizes: sizes.flip(0)),
            ("keys", lambda keys: keys.flip(0)),
            ("keys", lambda keys: keys * 1000),
            ("keys", lambda keys: keys - 1000),
            ("keys", lambda keys: keys[:-1]),
            ("keys", lambda keys: keys.double()),
            ("logs", lambda logs: -logs),
            ("logs", lambda logs: logs * math.nan),
            ("logs", lambda logs: logs[None]),
            ("backoffs", lambda backoffs: backoffs - math.inf),
            ("backoffs", lambda backoffs: backoffs.long()),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(self, tmp_path, name, change):
        saved = self.rewritten(
            tmp_path / "model", lambda tensors, metadata: tensors.update({name: change(tensors[name])})
        )
        with pytest.raises(UserError, match="does not hold a model"):
            load(saved)

    @pytest.mark.parametrize("order", [0, 10**9, 10**30, "3", None, 2.5, [3]])
    def test_a_hostile_order_is_refused(self, tmp_path, order):
        saved = self.rewritten(tmp_path / "model", lambda _, metadata: metadata["config"].update(order=order))
        with pytest.raises(UserError, match="does not hold a model"):
            load(saved)

    def test_an_arpa_file_gives_the_model_again(self, model, path, tmp_path):
        model.to_arpa(path)
        again = NGram.from_arpa(path)
        assert (again.order, again.tokenizer, again.training) == (model.order, model.tokenizer, False)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=0)
        again.to_arpa(tmp_path / "again.arpa")
        assert (tmp_path / "again.arpa").read_bytes() == path.read_bytes()

    @given(st.text(st.characters(), min_size=1, max_size=20))
    def test_any_character_is_written_and_read(self, tmp_path_factory, text):
        path = tmp_path_factory.mktemp("arpa") / "model.arpa"
        model = NGram(tokenizer=CharTokenizer.of([text]), order=2).fit([text])
        model.to_arpa(path)
        again = NGram.from_arpa(path)
        assert again.tokenizer == model.tokenizer
        assert again.score(text) == model.score(text)

    def test_the_words_of_an_arpa_file(self, path):
        NGram(tokenizer=CharTokenizer("a \\\n\u2028\U0010ffffé", unknown=True), order=2).fit(["a \\"]).to_arpa(path)
        lines = path.read_text().split("\n")
        assert lines[:5] == ["\\data\\", "ngram 1=10", "ngram 2=4", "", "\\1-grams:"]
        assert lines[5].startswith("-99\t<s>\t-0.")
        assert [line.split("\t")[1] for line in lines[6:15]] == [
            *("a", "\\u0020", "\\u005c", "\\u000a", "\\u2028", "\\U0010ffff", "é", "</s>", "<unk>")
        ]
        assert "\ta \\u0020\n" in path.read_text()
        assert "<s> a\n" in path.read_text()
        assert lines[-3:] == ["", "\\end\\", ""]
        assert words(ByteTokenizer())[9:12] + words(ByteTokenizer())[91:94] + words(ByteTokenizer())[255:] == [
            *("\\x09", "\\x0a", "\\x0b", "[", "\\x5c", "]", "\\xff", "</s>")
        ]

    def test_a_file_of_another_program_is_read(self, path):
        path.write_bytes(
            b"a comment\r\n\r\n\\data\\\r\nngram 1=5\r\nngram  2 = 3\r\n\r\n\\1-grams:\r\n"
            b"-1.5 <unk>\r\n0\t<s>\t-0.25\r\n-0.75\t</s>\r\n-0.5\tb -0.125\r\n-inf a\t-1\r\n\r\n"
            b"\\2-grams:\r\n-0.5\t<s> b\r\n-0.0625\tb </s>\r\n-2 b a\r\n\\end\\\r\nmore\r\n"
        )
        model = NGram.from_arpa(path)
        assert model.tokenizer == CharTokenizer("ab", unknown=True)
        found = model.log_probabilities(torch.tensor([1, 1, 3, 0, 2])) / math.log(10)
        expected = [-0.5, -0.125 - 0.5, -0.125 - 1.5, -99, -1 - 0.75]
        torch.testing.assert_close(found, torch.tensor(expected))
        assert model.generate(length=9, temperature=0) == "b"

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            (("\\data\\", "data"), "line \\d+: expected an ARPA file, got one without .data"),
            (("ngram 2=", "ngram 3="), "line 3: expected the number of 2-grams, got 'ngram 3="),
            (
                ("ngram 2=", "".join(f"ngram {n}=1\n" for n in range(2, 102)) + "ngram 102="),
                "line 102: expected n-grams of",
            ),
            (("ngram 1=", "ngrams 1="), "line 2: expected the number of 1-grams, got 'ngrams"),
            (("ngram 1=", "ngram 1=\n"), "line 2: expected the number of 1-grams, got 'ngram 1='"),
            (("\\1-grams:", "\\1-gram:"), "line 6: expected .1-grams:, got '.*1-gram:'"),
            (("\n\\2-grams:", "\n-1\ta\n\\2-grams:"), "expected .2-grams:, got '-1"),
            (("\n\\end\\", ""), "expected .end., got the end of the file"),
            (("\\end\\", "\\4-grams:"), "expected .end., got '.*4-grams:'"),
            (("-99\t<s>", "x\t<s>"), "line 7: expected a logarithm of a probability, got 'x'"),
            (("-99\t<s>", "0.5\t<s>"), "line 7: expected a logarithm of a probability, got '0.5'"),
            (("-99\t<s>", "nan\t<s>"), "line 7: .*got 'nan'"),
            (("-99\t<s>\t", "-99\t<s>\tinf"), "line 7: expected a logarithm, got 'inf"),
            (("\t<s>\t", "\t<s> <s>\t1\t"), "line 7: expected a 1-gram and its logarithms, got '-99"),
            (("\t<s>\t", "\tthe\t"), "line 7: expected a character or a byte as a word, got 'the'"),
            (("\t<s>\t", "\t\\U00110000\t"), "line 7: expected a character or a byte"),
            (("\t<s>\t", "\ta\t"), r"line \d+: 'a' stands twice among the 1-grams"),
            (("\t<s> o\t", "\t<s> \u4f60\t"), r"line \d+: '\u4f60' is not among the 1-grams"),
            (("\t<s> o\t", "\to <s>\t"), r"line \d+: expected <s> as a first and </s> as a last word, got 'o <s>'"),
            (("\t<s> o\t", "\t<s> b\t"), r"line \d+: '<s> b' stands twice"),
            (("\t<s> o n\n", "\tk k n\n"), r"line \d+: 'k k' is not among the 2-grams, but 'k k n' is there"),
            (("\t<s> o n\n", "\t<s> o n\t-1\n"), r"line \d+: expected a 3-gram and its logarithms"),
        ],
    )
    def test_a_damaged_file_is_told_by_the_line(self, written, change, expected):
        content = written.read_text()
        assert change[0] in content
        written.write_text(content.replace(*change, 1))
        with pytest.raises(UserError, match=rf"model\.arpa: (line \d+: )?{expected}") as caught:
            NGram.from_arpa(written)
        assert "\n" not in str(caught.value)

    def test_a_file_cut_anywhere_is_refused(self, written):
        content = written.read_bytes()
        for size in (0, 1, 7, 40, len(content) // 3, len(content) // 2, len(content) - 4):
            written.write_bytes(content[:size])
            with pytest.raises(UserError, match=r"model\.arpa: line \d+: expected"):
                NGram.from_arpa(written)

    def test_other_bytes_and_places_are_named(self, written, tmp_path):
        written.write_bytes(b"\\data\\\nngram 1=\xff\n")
        with pytest.raises(UserError, match="line 2: expected an ARPA file in UTF-8, got the byte 0xff"):
            NGram.from_arpa(written)
        with pytest.raises(UserError, match="nothing: cannot be read: No such file"):
            NGram.from_arpa(tmp_path / "nothing")
        with pytest.raises(UserError, match="cannot write"):
            NGram(tokenizer=ByteTokenizer()).to_arpa(tmp_path / "no" / "model")

    @pytest.mark.parametrize("text", [*RHYME, "two sheep\nfor é master", "zzz"])
    def test_scores_are_kenlms(self, model, path, text):
        kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
        if model.order < 2 or model.order > 6:
            pytest.skip("kenlm is built for orders 2 to 6")
        model.to_arpa(path)
        peer, model = kenlm.Model(str(path)), NGram.from_arpa(path)
        sentence = " ".join(words_of(model.tokenizer, text))
        assert model.score(text) / math.log(10) == pytest.approx(peer.score(sentence), rel=1e-5)
        tokens = torch.tensor([*model.tokenizer.encode(text, strict=False), model.tokenizer.boundary])
        each = torch.tensor([log for log, *_ in peer.full_scores(sentence)])
        torch.testing.assert_close(model.log_probabilities(tokens) / math.log(10), each, rtol=1e-5, atol=1e-5)


class TestWords:
    """Files of words, as kenlm and SRILM write them."""

    # After `the` and at the beginning what is left is shared out by the shorter n-grams: 0.2 / 0.7 and 0.3 / 0.6.
    FILE = """
\\data\\
ngram  1=  5
ngram  2=  3
ngram  3=  1

\\1-grams:
-99\t<S>\t-0.30103
-0.39794\tthe\t-0.544068
-0.522879\tCat
-0.69897\t</S>
-1\t<UNK>

\\2-grams:
-0.154902\t<S> the\t-0.30103
-0.09691\tthe Cat
-0.30103\tCat </S>

\\3-grams:
-0.0457575\t<S> the Cat

\\end\\
"""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "model.arpa"
        path.write_text(self.FILE)
        return path

    def test_a_file_is_read(self, path):
        model = NGram.from_arpa(path)
        assert model.tokenizer == WordTokenizer("the Cat", unknown=True)
        # After `Cat`, which has no back-off weight, the shorter n-grams keep all of theirs.
        for text, expected in (
            ("the Cat", 0.7 * 0.9 * 0.5),
            ("  the\tCat\n", 0.7 * 0.9 * 0.5),
            ("the", 0.7 * 0.5 * 0.2 / 0.7 * 0.2),
            ("Cat the", 0.5 * 0.3 * 0.4 * 0.2 / 0.7 * 0.2),
            ("the dog the Cat", 0.7 * 0.5 * 0.2 / 0.7 * 0.1 * 0.4 * 0.8 * 0.5),
            ("the cat", 0.7 * 0.5 * 0.2 / 0.7 * 0.1 * 0.2),
            ("", 0.5 * 0.2),
        ):
            assert model.score(text) == pytest.approx(math.log(expected), abs=1e-5), text
        for context in ("", "the", "dog", "dog the"):
            assert probabilities(model, context).sum().item() == pytest.approx(1, abs=1e-5), context

    def test_text_is_drawn_word_by_word(self, path):
        model = NGram.from_arpa(path)
        assert model.generate(length=9, temperature=0) == "the Cat"
        assert model.generate("the", length=9, temperature=0) == " Cat"
        assert model.generate("the ", length=9, temperature=0) == "Cat"
        assert list(model.stream("Cat", length=9, temperature=0)) == []
        drawn = model.generate(length=50, generator=torch.Generator().manual_seed(0))
        assert set(drawn.split(" ")) <= {"the", "Cat"}
        with pytest.raises(UserError, match="unknown 'dog'"):
            model.generate("dog", length=1)

    def test_a_fitted_model_is_written_read_and_saved(self, tmp_path, order):
        lines = [line for text in RHYME for line in text.splitlines()]
        model = NGram(tokenizer=WordTokenizer.of(lines, unknown=True), order=order).fit(lines)
        reference = literal([words_of(model.tokenizer, line) for line in lines], order, model.tokenizer)
        model.to_arpa(tmp_path / "model.arpa")
        save(model, tmp_path / "model")
        for again in (NGram.from_arpa(tmp_path / "model.arpa", "words"), load(tmp_path / "model")):
            assert again.tokenizer == model.tokenizer
            for name, value in model.state_dict().items():
                assert torch.equal(again.state_dict()[name], value), name
            for line in (*lines, "one sheep for the crow"):
                found = [*words_of(model.tokenizer, line), END]
                each = [reference.probability([BEGIN, *found[:i]], word) for i, word in enumerate(found)]
                assert again.score(line) == pytest.approx(sum(map(math.log, each)), rel=1e-5), line
        for context in ("", "one for", "the the", "crow"):
            assert probabilities(model, context).sum().item() == pytest.approx(1, abs=1e-6), context

    def test_what_the_words_are_can_be_said(self, path):
        path.write_text(self.FILE.replace("the", "t").replace("Cat", "C"))
        assert NGram.from_arpa(path).tokenizer == CharTokenizer("Ct", unknown=True)
        assert NGram.from_arpa(path, "words").tokenizer == WordTokenizer("t C", unknown=True)
        assert NGram.from_arpa(path, "bytes").tokenizer == ByteTokenizer()
        with pytest.raises(UserError, match="tokenizer='letters': expected None or one of words, characters, bytes"):
            NGram.from_arpa(path, "letters")
        path.write_text(self.FILE)
        with pytest.raises(UserError, match="line 9: expected a character or a byte as a word, got 'the'"):
            NGram.from_arpa(path, "characters")

    def test_without_unk_unknown_words_have_no_probability(self, path):
        path.write_text(self.FILE.replace("-1\t<UNK>\n", "").replace("1=  5", "1=  4"))
        model = NGram.from_arpa(path)
        assert model.tokenizer == WordTokenizer("the Cat")
        with pytest.raises(UserError, match="unknown 'dog' in 1 place"):
            model.score("the dog")

    def test_an_n_gram_may_lack_its_last_words(self, path):
        """SRILM prunes those whose probability the shorter ones give as well."""
        path.write_text(self.FILE.replace("-0.09691\tthe Cat\n", "").replace("2=  3", "2=  2"))
        model = NGram.from_arpa(path)
        assert model.score("the Cat") == pytest.approx(math.log(0.7 * 0.9 * 0.5), abs=1e-5)
        assert model.score("Cat the Cat", end=False) == pytest.approx(
            math.log(0.5 * 0.3 * 0.4 * 0.2 / 0.7 * 0.3), abs=1e-5
        )

    def test_words_that_stand_twice_are_told(self, path):
        path.write_text(self.FILE.replace("-1\t<UNK>\n", "-1\t<UNK>\n-1\t<unk>\n").replace("1=  5", "1=  6"))
        with pytest.raises(UserError, match="line 13: '<unk>' stands twice among the 1-grams"):
            NGram.from_arpa(path)

    def test_other_tokens_are_no_words(self, tmp_path):
        pytest.importorskip("tokenizers")
        model = NGram(tokenizer=BPETokenizer.train(RHYME, 260), order=2)
        with pytest.raises(UserError, match="tokenizer='subwords': ARPA files are of words, characters, bytes"):
            model.to_arpa(tmp_path / "model.arpa")

    @pytest.mark.parametrize("text", ["the Cat", "Cat the dog", "the the Cat Cat", ""])
    def test_scores_are_kenlms(self, path, text):
        kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed")
        # Which knows the marks in lower case alone.
        path.write_text(self.FILE.replace("S>", "s>"))
        peer, model = kenlm.Model(str(path)), NGram.from_arpa(path)
        assert model.score(text) / math.log(10) == pytest.approx(peer.score(text), rel=1e-5)
