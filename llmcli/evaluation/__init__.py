"""Evaluation of models: prediction of text and of answers, memorization, compressors as baselines."""
