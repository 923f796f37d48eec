"""Benchmarks, run by hand: each compares two things in one run."""
