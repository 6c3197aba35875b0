"""Recognisers for single files, and their bundles."""
