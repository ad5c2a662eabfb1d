"""What one update of training does, and in which order images come."""
