"""One step (append, attend, reduce), and the exact many-token path."""
