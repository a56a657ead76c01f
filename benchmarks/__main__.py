"""`python -m peft_bench` is `peft-bench`."""

import sys

from .cli import main

sys.exit(main())
