"""What DMI computes: buckets, leaf sums, optimizer steps and checkpoints, without sockets."""
