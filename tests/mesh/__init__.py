"""Whole meshes of real processes on loopback: the promises, tried from outside."""
