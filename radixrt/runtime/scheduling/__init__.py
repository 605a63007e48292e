"""Which request computes what in a step, on which pages, and what becomes of the result."""
