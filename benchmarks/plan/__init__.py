"""What a tuning run was planned to take, and what it took."""
