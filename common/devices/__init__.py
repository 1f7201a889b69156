"""The hardware a program runs on: mesh, processes, signals, caches, peak rates of chips.

Belongs here: what touches devices or other processes. Does not: what is computed on them
(`common.training`), nor hardware that is not attached (`common.planning`).
"""
