"""The HTTP service: routes, batches, limits, drain, metrics and traces around the engine."""
