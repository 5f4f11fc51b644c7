"""The command line computes on the CPU where no device is named, so that what it writes can be compared bit for bit."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
