"""From a corpus to a trained model: planning, the training loop, resuming, the summary."""
