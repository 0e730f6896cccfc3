"""``python -m fuse_tier.cli``."""

from fuse_tier.cli import main

main()
