"""PARS's tables and figures again, from data of its shape."""
