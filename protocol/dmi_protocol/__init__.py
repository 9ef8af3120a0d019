"""What DMI decides: messages and state machines, without a clock, a socket, a disk or torch."""
