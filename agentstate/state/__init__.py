"""What happens to a state: turns, commits, history, leases."""
