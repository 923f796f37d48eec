"""Conversations: records, turns, tokens and the loss mask, chat templates."""
