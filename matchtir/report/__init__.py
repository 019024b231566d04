"""What people look at: reports of scored rollouts."""
