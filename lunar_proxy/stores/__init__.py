"""Keys, limits and the ledger behind three small protocols."""
