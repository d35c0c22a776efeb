"""Grids of pruning runs: their records, statistics and report. Importing this loads nothing heavy."""

PICTURE_KINDS = ("accuracy", "latency", "size", "lost", "centralities", "tuning")
"""The pictures of a report, by the first word of their names."""
