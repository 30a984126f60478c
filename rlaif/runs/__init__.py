"""Run folders and what is in them: the journal, stage folders, manifests, and the readers and writers of data
files.

Only this package and the pipeline read and write files; stages are given values and return values.
"""
