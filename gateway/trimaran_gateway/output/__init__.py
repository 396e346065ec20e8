"""Token ids from the engine to what a client reads: text, reasoning, tool calls, stop strings."""
