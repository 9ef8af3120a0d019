"""Everything that can go wrong with a training goes wrong, and the bits stay the same."""
