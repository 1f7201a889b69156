"""A run on disk: its workdir, checkpoints, log, and progress on the terminal.

Belongs here: code that reads or writes a workdir, and pure functions of its contents. Does not:
training itself (`common.training`), comparing runs (`common.reports`).
"""
