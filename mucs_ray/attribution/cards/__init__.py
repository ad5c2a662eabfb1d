"""The cards of the methods that come with the package, without torch (mucs_ray.attribution.card)."""
