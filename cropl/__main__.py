"""`python -m cropl` is `cropl`."""

import sys

from cropl.cli import main

if __name__ == "__main__":
    sys.exit(main())
