"""Random numbers of rows whose whole is in several processes."""

from __future__ import annotations

import pytest
import torch

from aigc_fast import functional as F
from aigc_fast.runtime.rows import Rows, alike, laid_out

WHOLE = 11
PARTS = {
    "from the beginning": Rows(range(4), WHOLE),
    "from a block": Rows(range(4, 9), WHOLE),
    "within a block": Rows(range(3, 11), WHOLE),
    "here and there": Rows(torch.tensor([7, 0, 10, 2, 3]), WHOLE),
}


def in_columns(*parts):
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


DRAWS = {
    "randn": lambda rows: F.randn(len(rows), 3),
    "rand": lambda rows: F.rand(len(rows), 1),
    "dropout": lambda rows: F.dropout(rows, 0.4),
    "dropout of rows of 8": lambda rows: F.dropout(rows.repeat(1, 4)[:, :8], 0.4),
    "reparameterize": lambda rows: F.reparameterize(rows, 0.1 * rows),
    "reparameterize_kl": lambda rows: torch.cat(
        [part.view(len(rows), -1) for part in F.reparameterize_kl(rows, rows)], 1
    ),
    "attention": lambda rows: F.scaled_dot_product_attention(*[rows[:, None, :, None]] * 3, dropout_p=0.4),
}


def drawn(name, rows):
    torch.manual_seed(3)
    leaf = rows.clone().requires_grad_()
    found = DRAWS[name](leaf)
    gradient = None
    if found.requires_grad:
        (gradient,) = torch.autograd.grad(found.square().sum(), leaf)
    return found.detach(), gradient


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", DRAWS)
def test_rows_get_the_numbers_that_the_whole_gives_them(name, part):
    whole, rows = torch.randn(WHOLE, 5), PARTS[part]
    expected, of_whole = drawn(name, whole)
    with laid_out(rows):
        found, gradient = drawn(name, whole[rows.places])
    torch.testing.assert_close(found, expected[rows.places])
    if of_whole is not None:
        torch.testing.assert_close(gradient, of_whole[rows.places])


def test_other_tensors_and_what_is_alike_are_whole():
    torch.manual_seed(0)
    six, five = F.randn(6), F.randn(5)
    torch.manual_seed(0)
    with laid_out(PARTS["from a block"], None):
        assert torch.equal(F.randn(6), six)
        with alike():
            assert torch.equal(F.randn(5), five)
        torch.manual_seed(0)
        assert not torch.equal(F.randn(5, 3), F.randn(6, 3)[:5])


def test_sequences_of_various_lengths_are_dropped_as_in_the_whole():
    lengths = [3, 1, 4, 2]
    bounds = torch.tensor([0, 3, 4, 8, 10])
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 10, 2, 4)
    torch.manual_seed(1)
    whole = F.varlen_attn(query, key, value, bounds, dropout_p=0.5)
    torch.manual_seed(1)
    with laid_out(Rows(range(2, 4), len(lengths))):
        found = F.varlen_attn(query[4:], key[4:], value[4:], bounds[2:] - 4, dropout_p=0.5)
    torch.testing.assert_close(found, whole[4:])


def test_rows_of_a_part_and_of_repetitions():
    rows = Rows(range(3, 7), 9)
    assert rows.before(5) == Rows(range(3, 5), 5)
    assert rows.before(2).count == 0
    assert rows.repeated(2).places.tolist() == [3, 4, 5, 6, 12, 13, 14, 15]
