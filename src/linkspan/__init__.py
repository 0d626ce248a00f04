"""linkspan: one network for containers on Linux, on one host or many."""

__version__ = "0.2.0"

SCHEMA = 1
"""Version of the records that hosts share (``records``) and of documents on the disk."""
