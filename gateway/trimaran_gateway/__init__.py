"""The HTTP front: text to ids and back, client dialects, streaming, limits, metrics. Imports no torch."""
