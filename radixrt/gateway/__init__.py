"""OpenAI-compatible HTTP: one more client of the protocol, in a process of its own."""
