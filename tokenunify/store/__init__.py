"""Arrays on disk, manifests, and block-wise work that resumes."""
