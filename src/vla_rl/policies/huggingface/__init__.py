"""Backbones from Hugging Face."""
