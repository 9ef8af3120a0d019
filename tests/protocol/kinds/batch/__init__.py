"""Batch inferences."""
