"""The counterfactual test: remove, retrain, regenerate, compare (spec 11)."""
