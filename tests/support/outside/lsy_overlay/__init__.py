"""A package outside the tree: a kind that every kernel has, a tunnel of its own, and a backend that uses both."""
