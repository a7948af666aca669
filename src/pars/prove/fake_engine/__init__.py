"""A server that answers as an engine does, at a speed that is known.

In: OpenAI requests. Out: answers, streams and metrics.
Read `server.py` first.
"""
