"""What a user composes: rounding, subspace, trust region, phases, values' optimizer, metric."""
