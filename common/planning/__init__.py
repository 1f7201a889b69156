"""The cost of a program before it runs: memory, collectives, FLOPs and bounds, on chips that need
not be attached.

Belongs here: compiling for a topology, reading compiled programs, dry runs. Does not: measuring
(scripts/bench.py).
"""
