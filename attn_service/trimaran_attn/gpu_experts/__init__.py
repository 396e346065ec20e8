"""Routed experts that the attention service computes itself, on its GPU: those that it holds, and, for long
prompts, some that it streams through.

placement   which experts: a pure function of how often each is used
heat        that measure, kept from one start to the next
resident    one layer's experts in GPU memory
split       `Experts` that computes the residents and asks another for the rest
build       from the plan to all of these
stream      `Experts` that streams a part of a long chunk's experts and asks another for the rest
stream_cost which part: a pure function of measured rates
streamer    from the file through two buffers to the kernels
stream_copy copies beside the computation
caretaker   counts, exchanges residents while nothing runs, keeps the heat
"""
