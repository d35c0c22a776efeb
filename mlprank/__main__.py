"""`python -m mlprank` is the command line."""

import sys

from mlprank.cli import main

if __name__ == "__main__":
    sys.exit(main())
