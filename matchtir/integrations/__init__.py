"""Credit by turn inside trainers of others: one file a trainer, and what they share."""
