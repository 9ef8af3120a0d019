"""Any bytes give a message or a refusal."""
