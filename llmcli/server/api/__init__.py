"""What requests ask for, and the answers."""
