"""All that scores a completion: the reward model with its head, its training and files, functions, rules and
the judge itself."""
