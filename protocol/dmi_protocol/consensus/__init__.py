"""What was agreed? Raft with pre-vote, check-quorum, leadership transfer, snapshots and learners."""
