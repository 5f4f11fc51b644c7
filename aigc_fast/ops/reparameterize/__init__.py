"""Reparameterised sampling and its divergence."""
