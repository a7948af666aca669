"""Ranks LLM requests by predicted answer length. The module path is the API."""

__version__ = "0.1.0"
