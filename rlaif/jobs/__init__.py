"""What a stage needs of the world: its job reads the inputs, calls the pure stage, and writes the folder."""
