"""The methods by which ARModel is fitted."""

from __future__ import annotations

import pytest
from ar_series import METHODS


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return request.param
