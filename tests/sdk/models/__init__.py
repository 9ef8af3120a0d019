"""Models, from the user's side."""
