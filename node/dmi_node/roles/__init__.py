"""The role processes that this daemon starts, each a small main around ``dmi_tensor`` and ``dmi_wire``."""
