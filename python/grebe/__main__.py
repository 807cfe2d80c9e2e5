"""``python -m grebe`` is the command ``grebe``."""

try:
    from grebe.cli import main
except KeyboardInterrupt:
    raise SystemExit(130) from None

raise SystemExit(main())
