"""The run that a training script lives in."""
