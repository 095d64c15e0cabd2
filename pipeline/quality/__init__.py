"""The quality of models: confidence intervals, calibration, thresholds, comparisons and costs."""
