"""Rollouts: a policy and the tools of many tasks take turns, and every token is kept as it was sampled."""
