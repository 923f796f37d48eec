"""The hall: one verb a file. Options -> one call -> render."""
