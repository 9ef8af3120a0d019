"""What a node writes to its disk."""
