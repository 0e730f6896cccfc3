"""What leaves nothing of the driver on a node that it was removed from."""
