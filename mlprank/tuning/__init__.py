"""Grid search over training runs: all trials at once on one device, or one by one, here or on a cluster."""
