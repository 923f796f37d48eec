"""The decoder in PyTorch, for training and GPUs."""
