"""What DMI costs, beside its peers, measured in one run."""
