"""Batch inference: what is read, how a batch is computed, and what is written. A batch is a pure function of the inputs' order
and the configuration."""
