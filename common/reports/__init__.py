"""Finished runs side by side: statistics over seeds, bit-for-bit comparison, figures.

Belongs here: pure functions of logs and results, and plots of them. Does not: command lines and
pages (scripts/).
"""
