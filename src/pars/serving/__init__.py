"""The doors: inside vLLM as middleware, in front of any engine as a gateway.

In: HTTP requests. Out: the same requests with a priority, and their answers, untouched.
Read `middleware.py` first, then `gateway.py`. `ext_proc/` is for Envoy.
"""
