"""The text that the demo model is trained on: books, Python modules, generated conversations."""
