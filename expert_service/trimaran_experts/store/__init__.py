"""Packed weights that outlive the service: made once, attached by whoever needs the same.

layout    where each matrix lies
manifest  the head of the file: whose weights, whole or not
segment   attach or build, under locks
rooms     which directory, and whether there is room
catalog   list and purge
memory    huge pages, early allocation, NUMA nodes
"""
