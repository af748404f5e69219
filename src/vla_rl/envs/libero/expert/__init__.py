"""A scripted expert for LIBERO's tasks."""
