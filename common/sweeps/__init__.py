"""Many runs of one config: overrides, trials, stacked populations, launchers.

Belongs here: which trials a sweep has, their status, and how they are started (processes, Ray,
SLURM, `vmap`). Does not: reading their results (`common.reports`).
"""
