"""From records of prompts and answer lengths to a ranker folder, offline and with torch.

In: files of records. Out: a ranker folder and its evaluation.
Read `training/train.py` first.
"""
