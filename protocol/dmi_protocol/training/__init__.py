"""Which contributions make a step: decided here, computed in ``dmi_tensor``, carried by the role processes."""
