"""How clips begin: the things that move in their first two frames, apart from where they are and whither they go."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aigc_fast.models.video.latents import split

FRAMES = 2
"""Frames that are drawn together: where things are, and how they move."""

_SLOPE = 0.2
# Of the frames' longer side: of a thing's picture, and how far around its middle it is looked for.
_PICTURE, _AROUND = 0.625, 0.2
# Of what stands out but stands still, beside what moves; and of anything at all.
_STILL, _NOTHING = 0.1, 1e-3
_GLANCES = 2
# How often what stands out is shared out anew among things that were found, and how sharply.
_SHARINGS, _SHARPNESS = 4, 2.0
# Cells to the shorter side among which a thing is looked for first.
_CELLS = 8
# Numbers of a latent vector for a place and a move, and units of what they become.
_PLACED, _PLACING = 4, 32
# What a unit of these is, of a side: places spread over the frame, moves over a third of it.
_PLACE, _MOVE = 1 / 6, 0.1
# The posterior begins narrow: where nothing is known of a place, nothing is learned of a thing.
_NARROW = -3.0
# A background that is darkest or brightest is many steps of training away.
_GAIN = 16.0


class Beginnings(nn.Module):
    """Draws the first two frames of clips: things, each of a latent vector, upon a background that is the same for all.

    A vector's first numbers say where the thing is in the middle of both frames and how it moves from one to the other,
    near to linearly; all of it says how it looks. What it looks like is hence learned from everywhere at once. The
    posterior looks first for what moves most, then for what else does, and reads the pixels around it.

    Args:
        frame_shape: (channels, height, width).
        things: that move.
        latent_dim: size of the vector of each.
        hidden: units of the layers between.
        classes: number of classes, 0 for none.

    Method: of parts of pictures apart from their places: Eslami et al., "Attend, Infer, Repeat: Fast Scene
    Understanding with Generative Models", 2016; Jaderberg, Simonyan, Zisserman and Kavukcuoglu, "Spatial Transformer
    Networks", 2015. Of finding them: mean shift, Comaniciu and Meer, "Mean Shift: A Robust Approach Toward Feature
    Space Analysis", 2002.
    """

    def __init__(
        self, frame_shape: tuple[int, int, int], things: int, latent_dim: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        channels, *sides = frame_shape
        self.frame_shape, self.things = tuple(frame_shape), things
        self.side = 2 * max(1, round(_PICTURE * max(sides) / 2))
        self.placed = min(_PLACED, latent_dim)
        pixels = channels * self.side**2
        self.code = _layers(FRAMES * pixels + _PLACED + classes, hidden, 2 * latent_dim)
        self.where = nn.Sequential(nn.Linear(self.placed, _PLACING), nn.Tanh(), nn.Linear(_PLACING, _PLACED))
        self.what = _layers(latent_dim + classes, hidden, pixels)
        self.background = nn.Parameter(torch.zeros(frame_shape))
        with torch.no_grad():
            # At first places and moves are what was found.
            for weight in (*self.where[-1].parameters(), self.code[-1].weight[: self.placed]):
                weight.mul_(0.1)
            self.code[-1].weight[latent_dim:].mul_(0.1)
            self.code[-1].bias[latent_dim:] += _NARROW

    def infer(self, pairs: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """The posterior of pairs of frames.

        Args:
            pairs: (N, 2, channels, height, width) in [-1, 1].
            classes: (N, classes), weights.

        Returns:
            μ and log σ², (things, N, latent_dim) each.
        """
        places = find(pairs, self.things)
        found = torch.stack([self._in_units(*each) for each in places])
        rows, columns = self._placing(self._in_pixels(found)[0])
        centres = [torch.stack(each) for each in zip(*places, strict=True)]
        own = torch.stack([_shares(each, pairs.shape[3:]) for each in centres], dim=2)[:, :, :, None]
        # (things, N, 2·channels, side, side), black without and where another thing is nearer.
        seen = rows.transpose(-1, -2)[:, :, None] @ (own * (pairs + 1)).flatten(2, 3) @ columns[:, :, None]
        mu, logvar = split(self.code(_beside(seen.flatten(2), found, classes.expand(self.things, -1, -1))))
        of_places = torch.cat([found[..., : self.placed], torch.zeros_like(mu[..., self.placed :])], dim=-1)
        return mu + of_places, logvar

    def forward(self, z: Tensor, classes: Tensor) -> Tensor:
        """Vectors (things, N, latent_dim) and weights of classes (N, classes) to frames (N, 2, channels, height, width)
        before any squashing."""
        placed = z[..., : self.placed]
        places = self.where(placed) + nn.functional.pad(placed, (0, _PLACED - self.placed))
        middles, moves = self._in_pixels(places)
        pictures = self.what(_beside(z, classes.expand(self.things, -1, -1)))
        pictures = pictures.unflatten(2, (-1, self.side, self.side))
        frames = []
        for centres in (middles - moves / 2, middles + moves / 2):
            rows, columns = self._placing(centres)
            frames.append((rows[:, :, None] @ pictures @ columns[:, :, None].transpose(-1, -2)).sum(0))
        return torch.stack(frames, dim=1) + _GAIN * self.background

    def _in_units(self, first: Tensor, second: Tensor) -> Tensor:
        """(N, 4), middle and move of a thing in units of the prior, of its centres in both frames in pixels, (N, 2)."""
        sides = first.new_tensor(self.frame_shape[1:])
        middle = (((first + second) / 2 + 0.5) / sides - 0.5) / _PLACE
        return torch.cat([middle, (second - first) / sides / _MOVE], dim=-1)

    def _in_pixels(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Middles and moves, (..., 2) each, of (..., 4) in units of the prior."""
        middle, move = places.chunk(2, dim=-1)
        sides = places.new_tensor(self.frame_shape[1:])
        return (_PLACE * middle + 0.5) * sides - 0.5, _MOVE * move * sides

    def _placing(self, centres: Tensor) -> tuple[Tensor, Tensor]:
        """What takes the rows and the columns of pictures to those of frames, (..., height, side) and
        (..., width, side), of pictures whose centres are (..., 2) in pixels: linear between pixels."""
        within = torch.arange(self.side, dtype=centres.dtype, device=centres.device) - (self.side - 1) / 2
        found = []
        for centre, side in zip(centres.unbind(-1), self.frame_shape[1:], strict=True):
            pixels = torch.arange(side, dtype=centres.dtype, device=centres.device)
            found.append((1 - (pixels[:, None] - within - centre[..., None, None]).abs()).clamp(min=0))
        return found[0], found[1]


@torch.no_grad()
def find(pairs: Tensor, things: int) -> list[tuple[Tensor, Tensor]]:
    """Where the things are that move most: of each its centres in both frames, (N, 2) each, row and column in pixels.

    Args:
        pairs: (N, 2, channels, height, width).
        things: how many are looked for; what surrounds one is left out for the next.
    """
    grey = pairs.mean(2)
    standing_out = (grey - grey.mean((2, 3), keepdim=True)).abs() + _NOTHING
    left = (grey[:, 1] - grey[:, 0]).abs() + _STILL * standing_out.mean(1)
    found = []
    for _ in range(things):
        middle = _centre(left, _brightest(left))
        found.append([_centre(frame, middle) for frame in standing_out.unbind(1)])
        left = left * (1 - _window(left, middle))
    for _ in range(_SHARINGS if things > 1 else 0):
        for place, frame in enumerate(standing_out.unbind(1)):
            shares = _shares(torch.stack([centres[place] for centres in found]), frame.shape[1:])
            for centres, share in zip(found, shares, strict=True):
                centres[place] = _centre(frame * share, centres[place])
    return [(first, second) for first, second in found]


def _brightest(maps: Tensor) -> Tensor:
    """(N, 2): the middle of the brightest of the overlapping squares of maps (N, H, W)."""
    cell = max(1, min(maps.shape[1:]) // _CELLS)
    squares = nn.functional.avg_pool2d(maps[:, None], 2 * cell, cell)[:, 0]
    place = squares.flatten(1).argmax(1)
    rows, columns = place // squares.shape[2], place % squares.shape[2]
    return (torch.stack([rows, columns], dim=1) + 1).to(maps.dtype) * cell - 0.5


def _centre(maps: Tensor, begin: Tensor) -> Tensor:
    """(N, 2): the centre of what is bright in maps (N, H, W) around a place (N, 2)."""
    rows, columns = (torch.arange(side, dtype=maps.dtype, device=maps.device) for side in maps.shape[1:])
    for _ in range(_GLANCES):
        share = maps * _window(maps, begin)
        total = share.sum((1, 2))
        begin = torch.stack([share.sum(2) @ rows / total, share.sum(1) @ columns / total], dim=1)
    return begin


def _shares(centres: Tensor, sides: Sequence[int]) -> Tensor:
    """(things, N, H, W): how much of each pixel is a thing's, of things with their centres at (things, N, 2): all of
    them together 1, the nearest the most."""
    scale = (_AROUND * max(sides)) ** 2
    apart = []
    for place, side in zip(centres.unbind(-1), sides, strict=True):
        pixels = torch.arange(side, dtype=centres.dtype, device=centres.device)
        apart.append((pixels - place[..., None]).square())
    return (-_SHARPNESS * (apart[0][..., :, None] + apart[1][..., None, :]) / (2 * scale)).softmax(0)


def _window(maps: Tensor, centre: Tensor) -> Tensor:
    """(N, H, W): from 1 at the centre (N, 2) to 0 away from it."""
    scale = 2 * (_AROUND * max(maps.shape[1:])) ** 2
    near = []
    for place, side in zip(centre.unbind(1), maps.shape[1:], strict=True):
        apart = torch.arange(side, dtype=maps.dtype, device=maps.device) - place[:, None]
        near.append(torch.exp(-apart.square() / scale))
    return near[0][:, :, None] * near[1][:, None]


def _layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(hidden, hidden),
        nn.LeakyReLU(_SLOPE),
        nn.Linear(hidden, outputs),
    )


def _beside(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=-1)
