"""The kernel side of a mount: mountpoints, descriptors, unmounting."""
