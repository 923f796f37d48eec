"""What a model does and holds: attention, tensors, differences."""
