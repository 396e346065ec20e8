"""The expert service: the routed experts of a model, in RAM, computed on the CPU. Never imports torch.

placement   which experts and CPUs this shard takes
loader      their tensors in the model file, checked, and read into memory
self_check  the chosen kernel against a float64 reference
engine      kernels and weights, put together
sessions    one attention service each: what it said in its hello, how it is served
call_runner computes calls that came as messages, beside the control loop
service     the control loop: hellos, heartbeats, statistics, goodbyes
"""
