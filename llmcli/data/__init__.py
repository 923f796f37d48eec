"""From files to text, to tokens, to batches. Start at sources.py, then files.py, then text/ or
conversations/."""
