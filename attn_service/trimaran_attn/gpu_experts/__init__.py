"""Routed experts that the attention service computes itself, on its GPU.

placement   which experts: a pure function of how often each is used
heat        that measure, kept from one start to the next
resident    one layer's experts in GPU memory
split       `Experts` that computes the residents and asks another for the rest
build       from the plan to all of these
caretaker   counts, exchanges residents while nothing runs, keeps the heat
"""
