"""What runs a model: a small protocol and its implementations."""
