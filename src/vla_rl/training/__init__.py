"""What a training run keeps, and its evaluations."""
