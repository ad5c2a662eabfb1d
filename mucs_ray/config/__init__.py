"""The recipe: every value that changes a number, checked."""
