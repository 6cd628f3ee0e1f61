"""Constants of operators, calibrated or trained on the queries, keys and attention of a cell that reads a text."""
