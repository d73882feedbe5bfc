"""``python -m pvopt``."""

import sys

from pvopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
