"""Reads the files of runs, and makes pages, tables and figures of them."""
