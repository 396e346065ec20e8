"""Decode steps that are recorded once and replayed.

buckets   how many rows a recorded step has
inputs    a step's inputs, in tensors that stay where they are
capture   recording and replaying: CUDA graphs
steps     `StepGraphs`: which steps are replayed, and what comes out
"""
