"""One room per hot path."""
