"""The training loop, its clock, evaluations and events."""
