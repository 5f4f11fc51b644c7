"""Convolution, transposed convolution and their weight gradient."""
