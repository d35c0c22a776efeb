"""What a resumable grid needs, once: records, a directory, progress, engines. Importing this loads nothing heavy."""
