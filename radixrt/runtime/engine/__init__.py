"""The engine process: assembled from a config, its loop, its calls and what it tells."""
