"""Sessions: one interface over every edge runtime."""
