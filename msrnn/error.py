"""The one exception of the library."""


class Error(ValueError):
    """Something was refused: one sentence names the thing, what was found and what was expected."""
