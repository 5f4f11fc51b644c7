"""Training images: the embedded digits, MNIST's files, or a folder of images."""

from aigc_fast.data.dataset import ImageDataset, shift
from aigc_fast.data.readers import digits, load

__all__ = ["ImageDataset", "digits", "load", "shift"]
