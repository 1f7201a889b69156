"""`python -m common.laws`: see `common.laws.report`."""

from common import cli
from common.laws import report

cli.exit(report.main)
