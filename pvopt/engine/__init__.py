"""What a step of the optimizer is made of."""
