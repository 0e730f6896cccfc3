"""Training jobs as users write them, killed in the middle of a save, that lose their node and go on elsewhere."""
