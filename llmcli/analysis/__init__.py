"""Model analysis: attention, tensors, differences."""
