"""Talking to the source: connections with one text form, and named statements."""
