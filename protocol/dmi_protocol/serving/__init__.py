"""Which replica computes what a gateway has taken in."""
