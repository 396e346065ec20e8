"""Triton kernels for one GPU, each beside its torch reference.

Importing this package does not import Triton: the kernels' modules do, so they are imported only where a GPU
is used. With `TRITON_INTERPRET=1` in the environment before that, they run on a CPU, slowly.
"""
