"""The HTTP front: text to token ids and back, client dialects, streaming, limits and metrics. Imports no torch."""
