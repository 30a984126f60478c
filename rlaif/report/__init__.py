"""What a person reads of a run: Markdown, tables."""
