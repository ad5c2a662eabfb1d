"""These are the cards of the package's own methods; they do not import torch (mucs_ray.attribution.card)."""
