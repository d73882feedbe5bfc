"""Programs beside the kernels; no kernel imports them."""
