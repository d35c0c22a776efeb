"""What a resumable grid needs, once: cells, a store, a lock, progress, engines."""
