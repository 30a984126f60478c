"""People's labels: pairs shown one at a time and each click kept as a preference."""
