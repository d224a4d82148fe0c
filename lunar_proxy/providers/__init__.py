"""Pure dialects, one file per provider family."""
