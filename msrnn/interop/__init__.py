"""Exchange of states with other libraries. This package imports them inside its functions, never when it is imported."""

from .dynamic_cache import cache_from_state, state_from_cache

__all__ = ["cache_from_state", "state_from_cache"]
