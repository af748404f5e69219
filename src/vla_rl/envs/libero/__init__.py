"""LIBERO: tasks, simulator, control, assets, environment."""
