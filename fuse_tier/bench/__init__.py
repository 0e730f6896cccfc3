"""The benchmarks that `fuse-tier bench` runs."""
