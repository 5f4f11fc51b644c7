"""Random numbers and dropout, from Philox."""
