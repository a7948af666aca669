"""Engines in virtual time.

In: a workload and priorities. Out: when each request began and ended.
Read `simulate.py` first.
"""
