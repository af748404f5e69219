"""Training runs against training runs: which are alike but for their seed, how they did, and how sure that is."""
