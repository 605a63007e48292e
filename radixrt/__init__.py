"""radixrt: language-model programs over a prefix-sharing runtime."""
