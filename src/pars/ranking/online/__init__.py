"""
A ranker that learns while it serves: one step a finished request, no torch, no stored text.

In: a request's signals, and later its answer's length. Out: expected tokens, with a spread.
Read `ranker.py` first.
"""
