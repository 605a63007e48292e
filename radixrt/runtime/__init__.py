"""The runtime: a frontend for text and an engine for tokens, in one process or in two."""
