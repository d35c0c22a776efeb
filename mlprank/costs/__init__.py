"""What a network costs: parameters, FLOPs, bytes, latency."""
