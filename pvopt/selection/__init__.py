"""Which parameters of a model are quantized, by the names of layers and weights."""
