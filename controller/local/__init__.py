"""Kubernetes on this machine, as far as the controller needs it: for tests and benchmarks."""
