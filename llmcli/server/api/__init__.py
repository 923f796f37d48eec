"""The content of requests and answers: schemas, prompts, completions, log probabilities."""
