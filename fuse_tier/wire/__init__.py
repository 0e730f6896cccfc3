"""What travels between processes and nodes: control calls, bulk streams, TLS."""
