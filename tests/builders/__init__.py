"""What tests of several rooms are made of: small policies and what they see, windows of play, toy episodes."""
