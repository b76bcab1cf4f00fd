"""Scores of segmentations, tables and figures."""
