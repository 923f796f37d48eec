"""Handover to other training engines, which continue on a cluster with the same tokenizer, split and
mixture."""
