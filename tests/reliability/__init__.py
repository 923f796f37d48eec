"""What must not go wrong, tried for real: kills, full disks, flipped bits, files by strangers.

    python -m tests.reliability [ROW...]

runs every row, or those named, in full and prints the scorecard; a smaller number of tries of each is part of the
tests (tests/test_reliability.py).
"""
