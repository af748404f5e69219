"""Meta-World: tasks, simulator, success, environment."""
