"""``python -m paraload``."""

from __future__ import annotations

import sys

from paraload.cli import main

if __name__ == "__main__":
    sys.exit(main())
