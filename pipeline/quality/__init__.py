"""What a model is worth: metrics, intervals, comparisons, costs."""
