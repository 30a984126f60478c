"""Whether a judge can be trusted: accuracy, calibration, biases, agreement and sensitivity, and what they add
up to."""
