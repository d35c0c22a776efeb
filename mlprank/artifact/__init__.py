"""`pruned.ckpt` and the other files that hold networks: written whole, read safely, exported."""
