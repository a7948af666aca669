"""What is asked, when, and under which policies.

In: records and arrival traces. Out: a workload file.
Read `workload.py` first.
"""
