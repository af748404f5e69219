"""The process reward model: labels, examples, the tiny model and any image-text model, files."""
