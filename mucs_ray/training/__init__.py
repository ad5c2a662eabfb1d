"""One update of training, and the order in which images come."""
