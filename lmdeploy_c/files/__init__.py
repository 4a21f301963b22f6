"""A model's files: found, opened and checked. Nothing here loads weights or knows an engine."""
