"""What speaks to clients; none of these modules imports another."""
