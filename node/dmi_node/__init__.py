"""What DMI does: the daemon, its adapters, the role processes and the command."""
