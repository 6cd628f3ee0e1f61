"""Matrices in 4 and 8 bits, and the modules that multiply by them without a float copy in memory."""
