"""Runs the command line as ``python -m longtail``."""

import sys

from longtail.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
