"""Shows what an order is worth: simulated, on a fake engine, and live.

In: a workload and policies. Out: latencies side by side, as a page, a table and JSON.
Read `workload/workload.py` first, then `engine/simulate.py`.
"""
