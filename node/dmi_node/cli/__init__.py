"""The ``dmi-node`` command: a user of the SDK like any other."""
