"""Adoption: what a runtime does that takes over an existing network of its own as a linkspan network."""
