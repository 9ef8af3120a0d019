"""Batch inference, without a mesh."""
