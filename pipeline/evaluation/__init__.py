"""The models of a run under evaluation: what each answers, beside which baseline and second model, and from which
probability on."""
