"""One node's supervisor: its claim on the RAM tier, its worker, its mounts, and their orderly end."""
