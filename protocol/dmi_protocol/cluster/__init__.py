"""What does the agreement mean? The replicated state, its commands, and what each of them does to it."""
