"""The pipeline: a recipe, the selection, the importance of neurons, the self-check and the result."""
