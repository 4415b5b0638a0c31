"""``python -m dreamda``: the same as the ``dreamda`` command."""
import sys

from .cli import main

sys.exit(main())
