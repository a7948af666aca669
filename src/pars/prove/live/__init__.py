"""The same load against a real endpoint.

In: a workload and a URL. Out: the times of each request.
Read `bench.py` first.
"""
