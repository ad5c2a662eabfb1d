"""The training set: canonical tables, bounded decoding, sources."""
