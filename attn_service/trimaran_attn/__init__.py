"""The attention service: all of the model but its routed experts, and the engine that serves requests."""
