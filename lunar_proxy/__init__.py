"""lunar-proxy: a sidecar for LLM traffic. See README.md for the life of a request."""

from ._version import __version__

__all__ = ["__version__"]
