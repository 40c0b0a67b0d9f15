"""`python -m oltr_ext` is the command `oltr`."""

import sys

from oltr_ext.cli import main

sys.exit(main())
