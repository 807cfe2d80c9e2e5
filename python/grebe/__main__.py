"""``python -m grebe`` is the command ``grebe``."""

from grebe.cli import main

raise SystemExit(main())
