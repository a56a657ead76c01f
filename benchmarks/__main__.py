"""`python -m benchmarks` is `peft-bench`."""

import sys

from benchmarks.cli import main

sys.exit(main())
