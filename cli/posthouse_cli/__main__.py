"""`python -m posthouse_cli`: the same as `posthouse`."""

import sys

from posthouse_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
