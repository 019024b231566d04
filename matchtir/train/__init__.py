"""The trainer: rollouts, credit and the policy loss become steps of the optimiser, on DeepSpeed."""
