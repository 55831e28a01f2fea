"""``python -m paraload``."""

import sys

from paraload.cli import main

if __name__ == "__main__":
    sys.exit(main())
