"""radixrt inside of other people's tools; each module is named after the tool it needs."""
