"""The pyfuse3 operations of one volume, and the daemon that serves them."""
