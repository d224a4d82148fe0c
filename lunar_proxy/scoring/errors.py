"""What can be wrong with the router's files; every message names the file and what to do."""

from __future__ import annotations


class ScoringError(Exception):
    """Base: `lunar-proxy router` prints it and exits 2, the gateway answers `router_not_ready`."""


class BadFile(ScoringError):
    """A file that is missing, unreadable, or not of the shape it should have."""


class Absent(BadFile):
    """A file, or the runtime that reads it, is not there at all: something else may stand in."""


class Mismatch(ScoringError):
    """Two files that were not made with each other.

    A vector learned with another encoder, truncation or map is silently wrong, so it is refused.
    """
