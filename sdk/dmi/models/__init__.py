"""Models in the mesh: what a file is, adding it as a version, and looking after versions."""
