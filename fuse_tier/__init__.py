"""Checkpoint storage at the speed of RAM; knows nothing of Kubernetes."""

from importlib.metadata import version

__version__ = version("fuse-tier")
