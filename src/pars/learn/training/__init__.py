"""Trains a ranker and writes its folder.

In: prepared pairs. Out: a folder that `pars.ranking.ranker` loads.
Read `train.py` first.
"""
