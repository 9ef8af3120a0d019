"""Batch inferences: replicas compute slices of the inputs, and each slice's result is committed once."""
