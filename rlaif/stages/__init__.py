"""The stages: functions from datasets and a typed config to a dataset. No paths, no command line, no
globals."""
