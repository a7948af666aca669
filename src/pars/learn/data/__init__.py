"""Reads the files that people have and makes training data of them.

In: rows of many shapes. Out: records, and pairs of prompts that differ in answer length.
Read `records.py` first.
"""
