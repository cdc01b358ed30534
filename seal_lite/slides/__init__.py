"""Whole slides: features, tasks, multiple-instance learning."""
