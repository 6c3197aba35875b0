"""Reads what runs wrote and draws it; the only results made here are the linear probes."""
