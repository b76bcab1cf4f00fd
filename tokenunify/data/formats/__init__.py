"""Read source files as arrays (z, y, x): one module per format."""
