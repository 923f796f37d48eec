"""Terminal input and output: text, tables, charts, progress, signals."""
