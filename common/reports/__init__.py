"""Finished runs side by side: statistics over seeds and folds, bit-for-bit comparison, figures, a
page.

Belongs here: pure functions of logs and results, and drawings of them. Does not: command lines
(scripts/).
"""
