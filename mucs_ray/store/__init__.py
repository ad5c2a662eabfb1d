"""The run directory: parts, manifests, checkpoints."""
