"""All-pole recursion."""
