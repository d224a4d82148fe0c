"""The engine: one data plane for every door."""
