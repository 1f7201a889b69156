"""Text: language models and their tasks, as `vision` holds those for images."""
