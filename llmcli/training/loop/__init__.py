"""The training loop: its clock, evaluations, events, and the training record."""
