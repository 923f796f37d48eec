"""Measuring how well a model predicts text and how much it has memorized."""
