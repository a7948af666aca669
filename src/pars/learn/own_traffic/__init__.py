"""Learns from one's own recorded outcomes, and keeps the versions.

In: a folder of outcomes. Out: a new version of the ranker, if it is better.
Read `from_outcomes.py` first.
"""
