"""`python -m bench.conformance NAME [--plugin FILE] [--json]`."""

import sys

from .parent import main

sys.exit(main())
