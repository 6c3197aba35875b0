"""Recognisers for single files, and the bundles they come in."""
