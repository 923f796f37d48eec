"""Files on disk as text: sources, readers of lines and records, the split into training and held-out text."""
