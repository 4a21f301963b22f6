"""`python -m lmdeploy_c`."""

import sys

from .cli import main

sys.exit(main())
