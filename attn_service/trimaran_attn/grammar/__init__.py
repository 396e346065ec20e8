"""Constrained generation: llguidance says which tokens may come next, the sampler draws among them."""
