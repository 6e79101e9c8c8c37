"""Evaluation of classifiers: discrimination, calibration, decision curves, subgroups."""
