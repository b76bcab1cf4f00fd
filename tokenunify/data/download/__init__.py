"""Fetch and verify source files: one module per kind of place."""
