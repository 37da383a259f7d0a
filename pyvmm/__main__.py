"""``python -m pyvmm`` is the command line."""

import sys

from pyvmm.cli.main import main

sys.exit(main())
