"""From a config to a trained state: program, step, loop, optimizers, schedules, durations.

Belongs here: whatever determines the values of an update, or when something is due. Does not:
files of a workdir (`common.runs`), several runs at once (`common.sweeps`).
"""
