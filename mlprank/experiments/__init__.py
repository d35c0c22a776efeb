"""Grids of prunings: cells, their records and statistics. Importing this loads nothing heavy."""
