"""Policies: who goes first in an engine's queue, one a page.

In: what a request is expected to take, and when it came. Out: its place, with its key.
Read `policy.py` first; then `max_slowdown.py`, which is the default.
"""
