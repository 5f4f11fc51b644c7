"""Group, instance and layer norms with the activation that follows."""
