"""``python -m prune2drive``."""

import sys

from .cli import main

sys.exit(main())
