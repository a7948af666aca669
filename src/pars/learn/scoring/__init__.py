"""Scores large logs: part by part, on this machine's processes or on Ray.

In: files of prompts. Out: a folder of scores, which `--scores NAME=FOLDER` takes.
Read `score.py` first.
"""
