"""Who should do what? Pure functions that the coordinator alone evaluates; their results are proposed."""
