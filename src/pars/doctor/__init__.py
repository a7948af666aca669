"""Does it help here, and what to change.

In: a running engine or gateway and recorded outcomes. Out: findings, each with a number and a step.
Read `doctor.py` first.
"""
