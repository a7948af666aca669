"""The outcome of each request, and what it says of the ranker.

In: answers as they pass. Out: a file of outcomes, metrics, and whether the order is still good.
Read `records.py` first.
"""
