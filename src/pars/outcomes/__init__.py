"""What became of a request, and what that says of the ranker.

In: answers as they pass. Out: a file of outcomes, metrics, and whether the order is still good.
Read `records.py` first.
"""
