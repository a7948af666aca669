"""Which of two answers will be longer.

In: prompts. Out: scores, in batches, without holding up the event loop.
Read `ranker.py` first: what a ranker folder holds.
"""
