"""Asks an endpoint for the lengths of its answers.

In: prompts. Out: a file of records, whole after any interruption.
Read `collect.py` first.
"""
