"""Measures of results: accuracies, calibration, codebook health, paired differences."""
