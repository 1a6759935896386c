"""Teachers: KDQ builds them, runs them on batches, and keeps their outputs on disk."""
