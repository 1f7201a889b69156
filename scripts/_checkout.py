"""Imported first by every script: `common`, `lm`, `vision` and `configs` are those beside this
folder, whatever else has these names: the user's folders, PYTHONPATH, an installed package."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
