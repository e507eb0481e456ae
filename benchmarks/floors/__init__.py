"""The least code that does the same work on an engine: no ids, expiry, checks, journal or turns."""
