"""The training and evaluation data of a run."""
