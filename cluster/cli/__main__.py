"""`python -m laban.cluster.cli`, the same as `laban`."""

import sys

from laban.cluster.cli import main

sys.exit(main())
