"""The `pars` command, one file a group of commands.

In: arguments. Out: one call into the package, and its report as a table or JSON.
Read `main.py` first.
"""
