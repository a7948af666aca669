"""PARS's HTTP interface: prompts in, scores out.

In: JSON with prompts. Out: JSON with a score each.
Read `server.py` first.
"""
