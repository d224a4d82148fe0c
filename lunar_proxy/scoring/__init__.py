"""UniRoute: which model answers a prompt best, decided in milliseconds on a CPU."""
