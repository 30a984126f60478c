"""Principle files: read with the line of every problem, checked, imported, described to editors."""
