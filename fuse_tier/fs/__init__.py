"""The operations of one volume, the daemon that serves them, and what it says to the kernel."""
