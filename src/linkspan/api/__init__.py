"""The agent's API: HTTP over its unix socket, and the client for it."""

WARNINGS = "Linkspan-Warnings"
"""The header with warnings of answers that have no place for them: a list of sentences as JSON, in ASCII."""
