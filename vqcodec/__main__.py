"""`python -m vqcodec`: the command line without an installed script."""

import sys

from vqcodec.cli import main

if __name__ == "__main__":
    sys.exit(main())
