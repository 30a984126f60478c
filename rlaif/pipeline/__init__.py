"""From a recipe to a run: each stage's inputs are read, its key is compared, it runs, and its folder appears
whole."""
