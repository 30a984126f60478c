"""What stages found, as values: they are written to files, compared, and rendered by `report`."""
