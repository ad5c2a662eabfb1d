"""What z is: the spaces in which models work, and the way from pictures to z and back."""
