"""The network in PyTorch, for training and GPUs."""
