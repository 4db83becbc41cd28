"""`python -m gworld` is the `gworld` command."""

import sys

from gworld.cli.main import main

sys.exit(main())
