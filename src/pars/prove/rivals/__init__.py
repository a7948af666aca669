"""Predictors as others published them, one a file, each with what differs from the publication."""
