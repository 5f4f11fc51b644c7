"""Logits processors against their definitions, by hand and by brute force, and within transformers' generate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_fast.generation.logits import DRY, XTC, MirostatV2, TopNSigma

NEVER = float("-inf")
IDS = torch.tensor([[1, 2, 3]])


def test_top_n_sigma_keeps_what_is_near_the_greatest() -> None:
    scores = torch.tensor([[4.0, 3.0, 0.0, NEVER, 1.0], [0.0, 0.0, 0.0, 0.0, 10.0]])
    deviation = torch.tensor([4.0, 3.0, 0.0, 1.0]).double().std(correction=0).item()
    n = 0.99 * 3 / deviation
    found = TopNSigma(n)(IDS, scores)
    assert found.tolist() == [[4.0, 3.0, NEVER, NEVER, NEVER], [NEVER, NEVER, NEVER, NEVER, 10.0]]
    wider = TopNSigma(1.01 * 3 / deviation)(IDS, scores)[0]
    assert wider.tolist() == [4.0, 3.0, NEVER, NEVER, 1.0]
    # The same tokens at any temperature.
    assert torch.equal(TopNSigma(n)(IDS, scores / 7).isfinite(), found.isfinite())


def penalties(ids: list[int], processor: DRY) -> dict[int, float]:
    """By comparing the end with every earlier place, token by token."""
    found: dict[int, float] = {}
    for end in range(len(ids) - 1):
        length = 0
        while length <= end and ids[end - length] == ids[-1 - length] and ids[-1 - length] not in processor.breakers:
            length += 1
        token = ids[end + 1]
        if length >= processor.allowed_length and token not in processor.breakers:
            loss = processor.multiplier * processor.base ** min(length - processor.allowed_length, 64)
            found[token] = max(loss, found.get(token, 0.0))
    return found


@pytest.mark.parametrize("options", [{}, {"allowed_length": 1}, {"breakers": {0}}, {"window": 7}, {"base": 1.0}])
def test_dry_is_its_definition(options: dict[str, Any]) -> None:
    processor, generator = DRY(**options), torch.Generator().manual_seed(0)
    for length in (0, 1, 2, 5, 40):
        for vocabulary in (2, 4):
            ids = torch.randint(vocabulary, (3, length), generator=generator)
            scores = torch.randn(3, vocabulary, generator=generator)
            found = processor(ids, scores)
            for row, own, before in zip(ids.tolist(), found, scores, strict=True):
                window = row if processor.window is None else row[-processor.window :]
                expected = before.clone()
                for token, loss in penalties(window, processor).items():
                    expected[token] -= loss
                torch.testing.assert_close(own, expected)


def test_dry_by_hand() -> None:
    # "3 4" was followed by 5 after "2 3 4", and by 6 after "9 3 4".
    ids = torch.tensor([[2, 3, 4, 5, 9, 3, 4, 6, 2, 3, 4]])
    found = DRY(multiplier=1.0, base=2.0, allowed_length=2)(ids, torch.zeros(1, 10))
    assert found.tolist() == [[0, 0, 0, 0, 0, -2.0, -1.0, 0, 0, 0]]
    long = torch.tensor([[1, 2] * 2000])
    assert DRY()(long, torch.zeros(1, 3)).isfinite().all()


def test_xtc_leaves_the_least_of_the_top_choices() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.97, 0.01, 0.01, 0.01]]).log()
    found = XTC(threshold=0.15, probability=1.0)(IDS, scores)
    assert found.isfinite().tolist() == [[False, False, True, True], [True, True, True, True]]
    kept = XTC(threshold=0.15, probability=1.0, keep=[0])(IDS, scores)
    assert kept.isfinite().tolist()[0] == [True, False, True, True]
    assert torch.equal(XTC(threshold=0.15, probability=0.0)(IDS, scores), scores)
    many = scores[:1].expand(2000, 4)
    first, again = (XTC(0.15, 0.5, generator=torch.Generator().manual_seed(1))(IDS, many) for _ in range(2))
    assert torch.equal(first, again)
    share = (~first[:, 0].isfinite()).float().mean().item()
    assert abs(share - 0.5) < 0.1


def test_mirostat_follows_its_target() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 400) * 2
    processor, ids, surprises = MirostatV2(target=3.0, learning_rate=0.1), torch.zeros(2, 1, dtype=torch.int64), []
    mu = torch.full((2, 1), 6.0, dtype=torch.float64)
    for _ in range(300):
        found = processor(ids, logits)
        torch.testing.assert_close(processor.mu, mu)
        surprise = -logits.double().log_softmax(-1) / math.log(2)
        assert torch.equal(found.isfinite(), surprise <= mu)
        token = found.softmax(-1).multinomial(1)
        drawn = -(found.double().log_softmax(-1).gather(1, token)) / math.log(2)
        mu = mu - 0.1 * (drawn - 3.0)
        surprises.append(drawn)
        ids = torch.cat([ids, token], 1)
    assert (torch.cat(surprises[100:], 1).mean(1) - 3.0).abs().max() < 0.3
    processor(torch.zeros(1, 4, dtype=torch.int64), logits[:1])
    assert processor.mu.tolist() == [[6.0]]


def test_mirostat_never_excludes_all() -> None:
    processor = MirostatV2(target=0.01)
    found = processor(IDS, torch.zeros(1, 50))
    assert found.isfinite().sum() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopNSigma(0.0), "n=0.0: expected"),
        (lambda: DRY(multiplier=-1.0), "multiplier=-1.0: expected"),
        (lambda: DRY(base=0.5), "base=0.5: expected"),
        (lambda: DRY(allowed_length=0), "allowed_length=0: expected"),
        (lambda: DRY(window=0), "window=0: expected"),
        (lambda: XTC(threshold=1.5), "threshold=1.5: expected"),
        (lambda: XTC(probability=-0.1), "probability=-0.1: expected"),
        (lambda: MirostatV2(target=0.0), "target=0.0: expected"),
        (lambda: MirostatV2(learning_rate=math.nan), "learning_rate=nan: expected"),
    ],
)
def test_bad_options(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_they_fit_generate() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=61, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    processors = [TopNSigma(2.0), DRY(breakers=[3]), XTC(), MirostatV2()]
    options = {"attention_mask": torch.ones(2, 4, dtype=torch.int64), "pad_token_id": 0, "max_new_tokens": 12}
    prompt = torch.randint(1, 61, (2, 4))
    found: Tensor = model.generate(prompt, do_sample=True, logits_processor=processors, **options)
    assert found.shape[1] > 4


PROCESSORS = [TopNSigma(1.0), DRY(), XTC(probability=1.0), MirostatV2()]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: type(processor).__name__)
def test_scores_of_one_sequence_without_a_batch_are_refused(processor: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"scores has shape \(9,\): expected \(B, V\)"):
        processor(IDS, torch.randn(9))


@pytest.mark.parametrize("processor", [DRY(), MirostatV2()], ids=lambda processor: type(processor).__name__)
def test_ids_of_another_number_of_sequences_are_refused(processor: Callable[..., Tensor]) -> None:
    for ids in (IDS, IDS[0]):
        with pytest.raises(ValueError, match=r"input_ids has shape .*: expected \(2, T\)"):
            processor(ids, torch.randn(2, 9))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TopNSigma("a"), "n"),
        (lambda: DRY(None), "multiplier"),
        (lambda: DRY(base="a"), "base"),
        (lambda: DRY(allowed_length=2.5), "allowed_length"),
        (lambda: DRY(window="a"), "window"),
        (lambda: XTC("a"), "threshold"),
        (lambda: XTC(generator=3), "generator"),
        (lambda: MirostatV2(learning_rate=None), "learning_rate"),
    ],
)
def test_settings_of_another_kind_are_named(make: Callable[[], Any], name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name} is \w+: expected"):
        make()
