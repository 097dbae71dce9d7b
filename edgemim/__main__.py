"""`python -m edgemim` is `edgemim`: the form that torchrun starts."""

import sys

from edgemim.cli import main

if __name__ == "__main__":
    sys.exit(main())
