"""Training data attribution for diffusion models, at any scale, on Ray."""

__version__ = "0.1.0"
