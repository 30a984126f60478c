"""What `import rlaif` offers to a notebook or a program: judges, reward models and training, on plain
texts."""
