"""OpenVLA: the model, its files, and the policy made of them."""
