"""What a run of the workflow consists of, and what it takes."""
