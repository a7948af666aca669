"""Predictors side by side: order, calibration, cost, and what their order is worth."""
