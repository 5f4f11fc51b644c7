"""From frames to features, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_fast import nn as fast

_SLOPE = 0.2
_CELL = 4
"""Pixels of a frame to the side of a coarse feature."""
_MOVES = 3
MATCHES = 2 * (2 * _MOVES + 1)
"""How many moves a frame is compared by, of rows and of columns."""
_STEPS = 32
MOVE = 1.5
"""Steps of a usual move."""
# Of mean differences of pixels in [-1, 1]; and the least probability that a move is given.
_SHARPNESS, _UNLIKELY = 60.0, 0.01
# Of logits of where pixels come from, at first: for what matched, and, where nothing did, for standing still.
_TRUST, _INERTIA = 1.5, 1.0
# Of the frames' side: how far pixels may move in a step.
_REACH = 0.1
# Of the convolutions that tell a cell what is farther than its neighbours: 7 cells are a digit's size in 64 pixels.
_DILATIONS = (2, 4)
# What moved pixels are taken for at most, of black and white.
_SURE = 0.98

# By what decoded frames are multiplied for contrast, and halvings of what is added for brightness, from so far.
_CONTRAST, _HALVINGS, _FARTHEST = 1.2, 16, 40.0


class Features(NamedTuple):
    """Of frames one after the other.

    Attributes:
        frames: themselves, (T, N, channels, height, width).
        fine: (T, N, C, height / 2, width / 2).
        coarse: (T, N, C, height / 4, width / 4).
        matches: (T, N, 14, height / 4, width / 4).
    """

    frames: Tensor
    fine: Tensor
    coarse: Tensor
    matches: Tensor

    def part(self, begin: int, end: int) -> Features:
        """Those from one place to before another."""
        return Features(*(each[begin:end] for each in self))

    def followed_by(self, others: Features) -> Features:
        """These, then others."""
        return Features(*(torch.cat(pair) for pair in zip(self, others, strict=True)))


def _with_activation(layer: nn.Module, *others: nn.Module) -> nn.Sequential:
    """A convolution with LeakyReLU, and what follows."""
    return fast.FusedSequential(layer, nn.LeakyReLU(_SLOPE, inplace=True), *others)


class Encoder(nn.Module):
    """Two convolutions of half the sides each over a frame and the one before it, and what moved between them.

    Args:
        channels: of a frame.
        fine: channels of the larger features; of the smaller ones that tell of motion as many.
        coarse: channels of the smaller ones that tell of the frame.
    """

    def __init__(self, channels: int, fine: int, coarse: int) -> None:
        super().__init__()
        self.fine, self.coarse = fine, coarse + fine
        self.first = _with_activation(fast.Conv2d(2 * channels, fine, 4, 2, 1))
        self.second = _with_activation(fast.Conv2d(fine, coarse, 4, 2, 1))
        self.motion = _with_activation(fast.Conv2d(MATCHES, fine, 1))

    def forward(self, frames: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Frames and those before them, (N, channels, H, W) each, to the fine and the coarse features and the matches,
        (N, fine, H/2, W/2), (N, coarse, H/4, W/4) and (N, 14, H/4, W/4)."""
        fine, found = self.first(torch.cat([frames, before], dim=1)), matches(frames, before)
        return fine, torch.cat([self.second(fine), self.motion(found)], dim=1), found


@torch.no_grad()
def matches(frames: Tensor, before: Tensor) -> Tensor:
    """How well each cell and what is around it match the frame before, moved by up to 3 steps either way, each of a
    thirty-second of the side or a pixel.

    Args:
        frames: (N, C, H, W).
        before: likewise.

    Returns:
        (N, 14, H/4, W/4): the logarithms of the probabilities, by the mean differences, of moves by -3 to 3 rows, then
        by as many columns; of pixels that come from so far below, or to the right. Without gradients.

    Method: of block matching and cost volumes: Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional
    Networks", 2015.
    """
    step, moves = max(1, round(max(frames.shape[2:]) / _STEPS)), 2 * _MOVES + 1
    grey, earlier = (each.mean(1, keepdim=True) for each in (frames, before))
    padded = nn.functional.pad(earlier, [_MOVES * step] * 4, mode="replicate")
    count, (height, width) = len(frames), frames.shape[2:]
    over_rows, over_columns = _means_around(height, grey), _means_around(width, grey).T
    # One memory for all: large tensors are mapped anew whenever they are asked for.
    apart, around = grey.new_empty(count, moves, height, width), []
    for down in range(0, moves * step, step):
        moved = padded[:, 0, down : down + height].unfold(2, width, step).transpose(1, 2)
        torch.sub(moved, grey, out=apart).abs_()
        around.append(over_rows @ (apart @ over_columns))
    probable = (-_SHARPNESS * torch.cat(around, dim=1)).softmax(1).unflatten(1, (moves, moves))
    return (torch.cat([probable.sum(2), probable.sum(1)], dim=1) + _UNLIKELY).log()


def summed_up(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How things move all in all, by the cells that know of a move.

    Args:
        found: (..., 14, h, w), as `matches` finds them.

    Returns:
        The mean probabilities of moves, (..., 14); and by rows and by columns, (..., 2) each, their mean in steps, and
        from 0, where no cell knows of any move, to 1, how well they are known.
    """
    moves = 2 * _MOVES + 1
    probable = (found.exp() - _UNLIKELY).unflatten(-3, (2, moves))
    known = probable.amax(-3, keepdim=True) - 1 / moves
    mean = (probable * known).sum((-2, -1)) / (known.sum((-2, -1)) + _UNLIKELY)
    steps = torch.arange(-_MOVES, _MOVES + 1, dtype=mean.dtype, device=mean.device)
    return mean.flatten(-2), mean @ steps, mean.sum(-1)


def by_moves(latent_dim: int) -> nn.Linear:
    """What takes vectors, of which the first numbers say how all moves by rows and by columns in units of `MOVE` steps,
    to logarithms of the probabilities of moves, to be added to `matches`."""
    layer = nn.Linear(latent_dim, MATCHES)
    steps = torch.arange(-_MOVES, _MOVES + 1.0, device=layer.weight.device)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        for axis, weight in enumerate(layer.weight.unflatten(0, (2, -1))):
            # A normal distribution's about the number.
            weight[:, axis : axis + 1] = steps[:, None] * MOVE
        layer.bias.copy_((-steps.square() / 2).repeat(2))
    return layer


def _means_around(side: int, like: Tensor) -> Tensor:
    """(cells, side): what takes the mean of the pixels of each cell of a line and of the cells beside it."""
    places = torch.arange(side // _CELL, device=like.device)
    near = ((places[:, None] - places).abs() <= 1).to(like.dtype)
    return (near / near.sum(1, keepdim=True) / _CELL).repeat_interleave(_CELL, dim=1)


class Around(nn.Module):
    """Tells each cell what is around it: a convolution 3×3, then residual ones whose taps stand ever farther apart.

    Args:
        inputs: channels of what the cells say.
        outputs: channels of what they are told.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.near = _with_activation(fast.Conv2d(inputs, outputs, 3, padding=1))
        self.far = nn.ModuleList(
            _with_activation(fast.Conv2d(outputs, outputs, 3, padding=apart, dilation=apart)) for apart in _DILATIONS
        )
        for layer in (self.near, *self.far):
            nn.init.kaiming_normal_(layer[0].weight, _SLOPE)

    def forward(self, maps: Tensor) -> Tensor:
        """(N, outputs, h, w) of maps (N, inputs, h, w)."""
        found = self.near(maps)
        for layer in self.far:
            found = found + layer(found)
        return found


class Decoder(nn.Module):
    """Draws a frame upon what the pixels of the frame before become when they move.

    Two transposed convolutions of twice the sides each, of which the second sees fine features, too, and a convolution
    draw. Each cell of the coarse maps says, by what is around it, whence its pixels come, up to a tenth of the side
    away, by softmaxes over rows and over columns: all of a thing turns back when one end of it meets a border.

    Args:
        coarse: channels of a core's maps and the coarse features together.
        hidden: channels between.
        fine: channels of the larger features, and of the last maps.
        channels: of frames.
        side: of frames, the longer one.
        steepness: of what comes, s, of which the mean of a pixel is tanh(x / s).

    Method: of the moving pixels: Niklaus, Mai and Liu, "Video Frame Interpolation via Adaptive Separable Convolution",
    2017; De Brabandere, Jia, Tuytelaars and Van Gool, "Dynamic Filter Networks", 2016.
    """

    def __init__(self, coarse: int, hidden: int, fine: int, channels: int, side: int, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness
        self.first = _with_activation(fast.ConvTranspose2d(coarse, hidden, 4, 2, 1))
        self.second = _with_activation(
            fast.ConvTranspose2d(hidden + fine, fine, 4, 2, 1), fast.Conv2d(fine, channels, 3, 1, 1)
        )
        self.reach = max(1, round(_REACH * side))
        self.around = Around(coarse + MATCHES, hidden)
        self.whence = fast.Conv2d(hidden + MATCHES, 2 * (2 * self.reach + 1), 1)
        with torch.no_grad():
            self.second[-1].weight.mul_(0.1)
            self._go_on_as_before(hidden)

    def _go_on_as_before(self, hidden: int) -> None:
        """Has pixels come, until it learns better, from where those of the frame before came from."""
        weight = self.whence.weight[:, :, 0, 0].mul_(0.1)
        of_matches = weight[:, hidden:].zero_().view(2, -1, 2, 2 * _MOVES + 1)
        for move in range(2 * _MOVES + 1):
            tap = self.reach + round((move - _MOVES) * self.reach / _MOVES)
            of_matches[0, tap, 0, move] = of_matches[1, tap, 1, move] = _TRUST
        self.whence.bias.zero_().view(2, -1)[:, self.reach] = _INERTIA

    def forward(self, maps: Tensor, before: Features) -> Tensor:
        """Maps (T, N, C, H/4, W/4) that a core makes of features, and these, to the frames that come,
        (T, N, channels, H, W), before any squashing."""
        frames, fine, coarse, found = (each.flatten(0, 1) for each in before)
        said = torch.cat([maps.flatten(0, 1), coarse], dim=1)
        drawn = self.second(torch.cat([self.first(said), fine], dim=1))
        around = self.around(torch.cat([said, found], dim=1))
        rows, columns = self.whence(torch.cat([around, found], dim=1)).chunk(2, dim=1)
        moved = torch.atanh(_SURE * self._moved(frames, rows, columns))
        return (drawn + self.steepness * moved).unflatten(0, maps.shape[:2])

    def _moved(self, frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        for dim, logits in ((2, rows), (3, columns)):
            side, sides = frames.shape[dim], [0, 0, 0, 0]
            sides[6 - 2 * dim] = sides[7 - 2 * dim] = self.reach
            padded = nn.functional.pad(frames, sides, mode="replicate")
            # (N, channels, taps, H, W), a view of them.
            shifted = padded.unfold(dim, side, 1).movedim((dim, -1), (2, dim + 1))
            share = logits.softmax(1).repeat_interleave(_CELL, 3).repeat_interleave(_CELL, 2)
            frames = (shifted * share[:, None]).sum(2)
        return frames


def contrasted(decoded: Tensor, steepness: float) -> Tensor:
    """Frames of more contrast and the same mean brightness.

    A mean of what may come is paler than anything that comes; where it is read in its turn, things fade.

    Args:
        decoded: (..., channels, height, width), before any squashing.
        steepness: s, of which the mean of a pixel is tanh(decoded / s).

    Returns:
        The same shape, before squashing; what is added for brightness is a constant to gradients.
    """
    steep = decoded * _CONTRAST
    with torch.no_grad():
        wanted = _brightness(decoded, steepness)
        least, most = torch.full_like(wanted, -_FARTHEST), torch.full_like(wanted, _FARTHEST)
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            darker = _brightness(steep + middle, steepness) < wanted
            least, most = torch.where(darker, middle, least), torch.where(darker, most, middle)
    return steep + (least + most) / 2


def _brightness(decoded: Tensor, steepness: float) -> Tensor:
    return torch.tanh(decoded / steepness).mean((-3, -2, -1), keepdim=True)
