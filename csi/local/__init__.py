"""The plugin on this machine, without Kubernetes: for tests and benchmarks."""
