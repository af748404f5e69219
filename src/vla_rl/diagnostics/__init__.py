"""What is wrong here and how to fix it: the machine, and checkpoints."""
