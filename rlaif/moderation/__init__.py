"""Moderators: whether a prompt, or an answer while it is written, breaks a principle."""
