"""Grids of pruning runs: their records, statistics and report. Importing this loads nothing heavy."""
