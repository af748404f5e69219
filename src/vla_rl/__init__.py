"""VLA-RL: make pretrained vision-language-action policies better by practice.

Importing the package imports no torch and no simulator; each room imports what it needs.
"""

__version__ = "0.1.0"
