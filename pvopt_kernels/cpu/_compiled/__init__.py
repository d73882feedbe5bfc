"""The inner loops, compiled by numba; every module here imports numba and so must be asked for."""
