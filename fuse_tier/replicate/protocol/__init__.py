"""The file protocol by which training frameworks talk to their replicator, on top of volumes (docs/frameworks.md)."""
