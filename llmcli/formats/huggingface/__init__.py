"""Hugging Face: directories, config.json, its names of tensors, and the hub."""
