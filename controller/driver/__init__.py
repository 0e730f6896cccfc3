"""What is made of a CheckpointConfiguration: the driver's manifests, as functions from values to values."""
