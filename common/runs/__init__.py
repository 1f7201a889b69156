"""A run on disk: its workdir, checkpoints, log, and progress on the terminal.

Belongs here: what reads or writes a workdir, and pure functions of what is read there. Does not:
training itself (`common.training`), comparing runs with each other (`common.reports`).
"""
