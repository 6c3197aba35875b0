"""Submits chains of commands to Slurm, and finds out what has become of them."""
