"""Implementations in plain torch: any device, any floating dtype, float64 included."""
