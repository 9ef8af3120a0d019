"""Three booted Debian systems: ``make hosts``."""
