"""Conversations: records, turns, chat templates, tokens with a loss mask."""
