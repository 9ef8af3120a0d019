"""The mesh as this node reaches it."""
