"""How well a ranker orders, and how well any could.

In: a ranker folder and records. Out: tau-b with intervals, tables and plots.
Read `evaluate.py` first.
"""
