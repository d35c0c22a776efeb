"""What every part of the package uses: whole files, look-up by name, errors, modules as they were, charts."""
