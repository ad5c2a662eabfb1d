"""Unlearning of a group of training images, and the score of a group without retraining (GUDA)."""
