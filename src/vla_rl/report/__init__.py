"""Images of a run: the HTML report, its charts, videos of episodes."""
