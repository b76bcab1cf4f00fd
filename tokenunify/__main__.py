"""`python -m tokenunify`."""

import sys

from tokenunify.cli import main

sys.exit(main())
