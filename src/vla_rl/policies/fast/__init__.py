"""FAST action tokens: chunks of actions as the byte-pair codes of their quantised cosine transform."""
