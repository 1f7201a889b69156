"""The laws that every task obeys, as checks for any task: `python -m common.laws my.task`.

Belongs here: checks that run the real program on any config. Does not: tests of one module
(tests/).
"""
