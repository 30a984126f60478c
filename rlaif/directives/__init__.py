"""Directives: what an operator wants said, or not, whatever the model was trained for."""
