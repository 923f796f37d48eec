"""How well a model predicts text, and what it has memorized."""
