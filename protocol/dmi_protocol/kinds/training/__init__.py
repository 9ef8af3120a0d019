"""Trainings: workers compute gradients, servers hold the shards of the model."""
