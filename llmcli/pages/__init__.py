"""HTML pages and their data."""
