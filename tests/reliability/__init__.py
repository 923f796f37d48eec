"""Fault injection: killed processes, full disks, flipped bits, malformed and hostile files.

    python -m tests.reliability [ROW...]

runs all rows, or those named, and prints the scorecard. The tests run each row with fewer tries
(tests/test_reliability.py).
"""
