"""The local door: a Unix socket that the command and the SDK knock at."""
