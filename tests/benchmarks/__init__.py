"""Benchmarks, run by hand. Each measures what it compares in the same run."""
