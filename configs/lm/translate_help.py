"""LibreOffice's help pages from English to German.

First prepare `help` with `scripts/prepare.py`, which says what it leaves out. Whole pages are held
out; of 2,486 translated paragraphs of `valid` and 2,155 of `test`, 1,272 and 1,051 have a source or
target that also stands in an earlier part, and 51 and 55 repeat one of their own: 1,163 and 1,049
remain. Not run yet, so there is no figure.
"""

import ml_collections

from common.errors import choice
from configs.lm import translate_bible


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """There is one variant: the settings of `translate_bible`."""
    choice("--config translate_help.py", arg, ("",))
    config = translate_bible.get_config()
    config.data.name = "help"
    return config
