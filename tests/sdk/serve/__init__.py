"""A deployment's replica, without a mesh."""
