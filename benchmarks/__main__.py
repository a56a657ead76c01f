"""`python -m peft_bench` is `peft-bench`."""

import sys

from peft_bench.cli import main

sys.exit(main())
