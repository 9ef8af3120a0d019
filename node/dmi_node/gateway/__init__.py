"""What takes the requests of a deployment in: HTTP on one side, replicas on the other."""
