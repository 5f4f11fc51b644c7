"""The command line computes on the CPU where no device is named, so that what it writes can be compared bit for bit;
and models for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aigc_fast.models import create, save


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with random weights, by name; the tests read them only."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    models = {
        "conv-vae": create("conv-vae", width=4),
        "dcgan": create("dcgan", width=4, num_classes=10),
        "mlp-gan": create("mlp-gan", hidden=8),
        "vocoder": create("vocoder", width=4, length=800, num_classes=6),
    }
    for name, model in models.items():
        save(model, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in models}
