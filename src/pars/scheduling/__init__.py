"""From expected work to the one integer that an engine orders by.

In: a score and a time of arrival. Out: a priority, and where each engine reads it.
Read `priority.py` first.
"""
