"""Explanations and model files as data and as HTML pages."""
