"""From comparisons to verdicts to preferences: engine + protocol = judge."""
