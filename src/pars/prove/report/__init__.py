"""Makes tables, pictures and a verdict of measured times.

In: times of runs. Out: JSON, a table and one page.
Read `report.py` first.
"""
