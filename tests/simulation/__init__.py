"""One seed is one universe: whole peers in virtual time, on a network and on disks that fail."""
