"""Model analysis: activations on a prompt, tensor statistics, differences between two files."""
