"""Text: the language models and their tasks live here, as the image ones live in `vision`."""
