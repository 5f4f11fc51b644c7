"""A training step of `VideoRNN` against the same with torch.nn's layers, in both of their layouts."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from aigc_fast.bench.calls import Case, WholeModel
from aigc_fast.bench.contest import CHANNELS_LAST, OURS, PYTORCH, Contest
from aigc_fast.bench.parity import check_parity, comparable, in_float64
from aigc_fast.models import VideoRNN
from aigc_fast.optimize import restore

_CORES = {"video": "convlstm", "video-latent": "latent"}


def video_model(case: Case) -> Contest:
    """A step on true frames, all of whose convolutions but the core's see all frames at once, in either library."""
    call: WholeModel = case.call
    fast = VideoRNN(core=_CORES[call.model])
    plain = restore(copy.deepcopy(fast))
    clips = torch.rand(call.batch, fast.frames, *fast.frame_shape) * 2 - 1
    peers = {PYTORCH: plain, PYTORCH + CHANNELS_LAST: copy.deepcopy(plain).to(memory_format=torch.channels_last)}
    ours, theirs = ({name: _stepping(model, clips) for name, model in way.items()} for way in ({OURS: fast}, peers))
    return Contest(ours, theirs, partial(_gate, plain, fast, clips))


def _stepping(model: nn.Module, clips: Tensor) -> partial[None]:
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    return partial(_step, model, optimiser, clips)


def _step(model: nn.Module, optimiser: torch.optim.Optimizer, clips: Tensor) -> None:
    optimiser.zero_grad()
    _loss(model, clips).backward()
    optimiser.step()


def _loss(model: nn.Module, clips: Tensor) -> Tensor:
    log_likelihood, kl, _, _ = model(clips)
    return (kl - log_likelihood).mean()


def _gate(plain: nn.Module, fast: nn.Module, clips: Tensor) -> tuple[float, float]:
    """Every gradient of a step, with the same noise and smooth activations."""
    models = [comparable(plain), comparable(fast), in_float64(comparable(plain))]
    found = [_gradients(model, clips) for model in models]
    return check_parity(found[1], found[0], found[2], torch.float32)


def _gradients(model: nn.Module, clips: Tensor) -> Sequence[Tensor]:
    parameters = list(model.parameters())
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return torch.autograd.grad(_loss(model, clips.to(parameters[0].dtype)), parameters)
