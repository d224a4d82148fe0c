"""What a token costs and how many there are."""
