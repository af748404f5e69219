"""OpenVLA's image pipeline, equal to the official one to the bit."""
