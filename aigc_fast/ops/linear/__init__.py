"""Linear layers with the activation that follows."""
