"""Evaluators that tasks of several domains share; `config.evals.NAME.kind` names one by its path.

Belongs here: a file a kind, with a function `evaluator` (see `common.evaluate.sections`). Does not:
the usual evaluator of a task, which stands in the task.
"""
