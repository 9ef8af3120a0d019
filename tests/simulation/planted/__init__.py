"""Bugs that are planted on purpose, into a copy: a simulator that does not find them proves nothing."""
