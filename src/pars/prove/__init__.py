"""The prove lane: what a policy is worth, live (`pars bench`) and in virtual time."""
