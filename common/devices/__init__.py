"""What a program runs on: mesh, processes, signals, terminal, memory, caches, rates of chips.

Belongs here: code that touches devices or other processes. Does not: the computation on them
(`common.training`), nor hardware that is not attached (`common.planning`).
"""
