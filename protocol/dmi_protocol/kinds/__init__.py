"""What a job is, by its kind: a kind is one room that says what its roles are, who is wanted, and what a loss means."""
