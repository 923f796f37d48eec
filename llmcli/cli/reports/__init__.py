"""One module per kind of result."""
