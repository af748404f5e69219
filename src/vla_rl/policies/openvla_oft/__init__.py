"""OpenVLA-OFT with discrete action tokens: OpenVLA's weights, all tokens of a turn in one parallel pass."""
