"""Calibration data, and what it shows of the neurons; streamed, so that memory does not grow with the data."""
