"""How good results are: accuracies, calibration, codebook health, paired differences."""
