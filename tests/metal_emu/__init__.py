"""Metal on Linux: compiles real ``.metal`` text, executes it and checks it. See README.md."""
