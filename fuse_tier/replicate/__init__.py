"""Snapshots, fan-out, retention, restore: the replication worker."""
