"""Decoders that generate text: all layers in one native call a step."""
