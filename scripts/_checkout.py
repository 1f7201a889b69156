"""Imported first by every script: `common`, `lm`, `vision` and `configs` are those beside this
folder, whatever else has these names: the user's folders, PYTHONPATH, an installed package."""

import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

# Ctrl-C while the libraries are imported, which takes seconds, ends the process; `cli.exit` takes
# over. An exception there can be swallowed, or crash what is half imported.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
