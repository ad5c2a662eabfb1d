"""The recipe, which holds every value that changes a number, and its checks."""
