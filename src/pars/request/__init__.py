"""What a request asks for, and who asks.

In: the body of a request, as bytes. Out: its prompt, its conversation and its limits.
Read `prompts.py` first.
"""
