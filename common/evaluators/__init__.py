"""Evaluators shared by tasks of several domains; `config.evals.NAME.kind` names one by its path.

Belongs here: one file per kind, with a function `evaluator` (see `common.evaluate.sections`). Does
not: the default evaluator of a task, which is in the task's module.
"""
