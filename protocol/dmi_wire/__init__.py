"""What DMI carries: CURVE keys, ZeroMQ sockets, frames and shared memory, without torch."""
