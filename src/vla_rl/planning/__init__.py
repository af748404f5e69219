"""What fits and how fast it will be, said before anything is started: `vla-rl plan`."""
