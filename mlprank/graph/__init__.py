"""A network as a frozen graph of neurons: traced once, read by rules, run again with any weights."""
