"""`python -m common.laws`: see `common.laws.checks`."""

from common import cli
from common.laws import checks

cli.exit(checks.main)
