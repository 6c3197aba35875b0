"""Reads what runs wrote, compares and draws it."""
