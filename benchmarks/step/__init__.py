"""What a step of the optimizer costs, in time and in memory."""
