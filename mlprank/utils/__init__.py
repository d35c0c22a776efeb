"""What every part of the package uses: files that are whole or absent, look-up by name, errors, modules as they were."""
