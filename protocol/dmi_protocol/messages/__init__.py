"""Words of the conversations. One file for each; the union that crosses the mesh is in ``mesh.py``."""
