"""The mathematics of diffusion: noise, noise levels, denoisers, losses, samplers."""
