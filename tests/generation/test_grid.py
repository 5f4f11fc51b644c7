import numpy as np
import pytest
import torch

from aigc_fast.generation import image_grid, to_uint8


@pytest.mark.parametrize(
    ("count", "columns", "rows", "expected_columns"),
    [(1, None, 1, 1), (5, None, 2, 3), (9, None, 3, 3), (10, None, 3, 4), (7, 3, 3, 3), (3, 8, 1, 3), (4, 1, 4, 1)],
)
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_every_image_is_in_its_cell(count, columns, rows, expected_columns, padding):
    images = torch.arange(count * 2 * 4 * 5, dtype=torch.float32).view(count, 2, 4, 5)
    grid = image_grid(images, columns, padding=padding, background=-7.0)
    assert grid.shape == (2, rows * (4 + padding) + padding, expected_columns * (5 + padding) + padding)
    for index in range(count):
        row, column = index // expected_columns, index % expected_columns
        top, left = padding + row * (4 + padding), padding + column * (5 + padding)
        assert torch.equal(grid[:, top : top + 4, left : left + 5], images[index])
        grid[:, top : top + 4, left : left + 5] = -7.0
    assert (grid == -7.0).all()


@pytest.mark.parametrize(
    ("images", "kwargs", "name"),
    [
        (torch.zeros(3, 4, 4), {}, "images"),
        (torch.zeros(0, 1, 4, 4), {}, "images"),
        (torch.zeros(2, 1, 4, 4), {"columns": 0}, "columns"),
        (torch.zeros(2, 1, 4, 4), {"padding": -1}, "padding"),
    ],
)
def test_bad_arguments_are_named(images, kwargs, name):
    with pytest.raises(ValueError, match=f"^{name}"):
        image_grid(images, **kwargs)


def test_bytes_of_an_image():
    image = torch.tensor([[[-1.0, 0.0, 1.0], [-3.0, 5.0, torch.nan], [torch.inf, -torch.inf, 0.5]]])
    assert to_uint8(image).tolist() == [[0, 128, 255], [0, 255, 0], [255, 0, 191]]


def test_colour_is_last_and_every_byte_comes_back():
    levels = torch.arange(256).view(1, 16, 16).expand(3, -1, -1)
    shifted = torch.stack([levels[0], levels[1].flip(0), levels[2].flip(1)])
    pixels = to_uint8(shifted / 127.5 - 1)
    assert pixels.shape == (16, 16, 3)
    np.testing.assert_array_equal(pixels, shifted.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("shape", [(2, 4, 4), (4, 4), (1, 1, 4, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="image: expected shape"):
        to_uint8(torch.zeros(shape))
