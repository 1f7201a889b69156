"""One file an experiment: `get_config(arg) -> ConfigDict`. Run one with scripts/train.py."""
