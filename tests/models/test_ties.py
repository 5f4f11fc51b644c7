"""Equal logits at the border of top-k and top-p: one rule for all that draw tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import aigc_fast
import aigc_fast.nn as fast_nn
from aigc_fast.models.text.options import options_of
from aigc_fast.models.text.sampling import Sampling
from aigc_fast.ops.recurrent.sampling import draw_of, draw_token, sample_tokens
from aigc_fast.runtime import native

_LOG = torch.tensor([1.0, 2.0, 4.0]).log().tolist()
# Their probabilities are 1, 2 or 4 of a whole, or none.
LOGITS = {
    "all-alike": [0.0] * 6,
    "two-ranks": [_LOG[0], _LOG[1], _LOG[0], _LOG[1], _LOG[0]],
    "three-ranks": [_LOG[0], _LOG[2], _LOG[1], _LOG[1], float("-inf"), _LOG[2], _LOG[1], _LOG[0]],
    "negative-zero": [-0.0, 0.0, -0.0, _LOG[1], 0.0],
}
CUTS = [*itertools.product((None, 1, 2, 3, 4, 99), (None, 0.2, 0.51, 0.76, 0.99))]
GRID = [(i + 0.5) / 400 for i in range(400)]


def by_rule(logits: list[float], top_k: int | None, top_p: float | None) -> set[int]:
    """What may be drawn: what equals the least of the greatest k stays, and then the fewest, the first of equals."""
    falling = sorted((i for i in range(len(logits)) if logits[i] > float("-inf")), key=lambda i: (-logits[i], i))
    if top_k is not None:
        falling = [i for i in falling if logits[i] >= logits[falling[min(top_k, len(falling)) - 1]]]
    weights = [round(float(torch.tensor(logits[i], dtype=torch.float64).exp())) for i in falling]
    if top_p is not None:
        falling = [i for n, i in enumerate(falling) if sum(weights[:n]) < top_p * sum(weights)]
    return set(falling)


def reference(logits: Tensor, top_k: int | None, top_p: float | None) -> set[int]:
    return {draw_token(logits, uniform, draw_of(1.0, top_k, top_p)) for uniform in GRID}


def numpy(logits: Tensor, top_k: int | None, top_p: float | None) -> set[int]:
    sampling = Sampling(1, top_k=top_k, top_p=top_p)
    found = {sampling.choose(logits.numpy(), uniform) for uniform in GRID}
    assert found == set(sampling.probabilities(logits.numpy()).nonzero()[0].tolist())
    return found


def of_a_network(logits: Tensor, top_k: int | None, top_p: float | None) -> set[int]:
    """What is drawn by a head whose logits are always these."""
    head = nn.Linear(4, len(logits))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.copy_(logits)
    parts = fast_nn.GRU(2, 4), nn.Embedding(len(logits), 2), head
    key = torch.tensor([3, 4])
    ids, _ = sample_tokens(*parts, torch.tensor([0]), None, 300, top_k=top_k, top_p=top_p, key=key)
    return set(ids.tolist())


WAYS: dict[str, Callable[..., set[int]]] = {"reference": reference, "numpy": numpy, "network": of_a_network}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOGITS)
def test_equals_at_a_border_stay_by_one_rule(name: str, way: str) -> None:
    logits = torch.tensor(LOGITS[name])
    for top_k, top_p in CUTS:
        assert WAYS[way](logits, top_k, top_p) == by_rule(LOGITS[name], top_k, top_p), (top_k, top_p)


@pytest.mark.skipif(native.cpu_reason() is not None, reason=str(native.cpu_reason()))
@pytest.mark.parametrize("level", native.levels())
def test_every_level_has_it(level: str) -> None:
    for name, (top_k, top_p) in itertools.product(LOGITS, CUTS[::3]):
        with native.use_level(level), aigc_fast.backend("cpu"):
            found = of_a_network(torch.tensor(LOGITS[name]), top_k, top_p)
        assert found == by_rule(LOGITS[name], top_k, top_p), (name, top_k, top_p)


@pytest.mark.parametrize("name", LOGITS)
def test_a_transformer_keeps_as_many(name: str) -> None:
    """transformers leaves it to `torch.sort` which of the equals stay that top-p needs."""
    scores = torch.tensor([LOGITS[name]])
    for top_k, top_p in CUTS:
        options = options_of({}, {"do_sample": True, "top_k": top_k or 0, "top_p": top_p or 1.0})
        found = scores
        for processor in options.processors((), 1, None):
            found = processor(torch.zeros(1, 1, dtype=torch.int64), found)
        wanted = by_rule(LOGITS[name], top_k, top_p)
        assert sorted(found[found > float("-inf")]) == sorted(scores[0, list(wanted)])
