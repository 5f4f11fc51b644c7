"""Measuring against the peers: cases as data, a gate on parity, turns, ratios and shares of the machine's limits."""
