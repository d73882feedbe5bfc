"""Toy convergence: PV and its rivals where the global optimum is known."""
