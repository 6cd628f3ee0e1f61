"""Tables, figures and resumable sweeps that experiments share."""
