"""The stages of a run, and what each of them reads."""
