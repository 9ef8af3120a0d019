"""The replica of a deployment."""
