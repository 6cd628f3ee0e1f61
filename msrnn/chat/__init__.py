"""A conversation whose past is a state, and its terminal."""
