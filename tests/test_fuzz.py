"""A fixed number of the calls that tests/fuzz.py draws."""

from __future__ import annotations

import fuzz
import hypothesis
import pytest

# Of the functions with the most ways through them there are the most.
EXAMPLES = {"convolution": 60, "attention": 50}


@pytest.mark.parametrize("name", fuzz.CHECKS)
def test_drawn_calls(name: str) -> None:
    hypothesis.settings(max_examples=EXAMPLES.get(name, 25))(fuzz.drawn_check(name))()
