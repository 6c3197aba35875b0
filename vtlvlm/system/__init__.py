"""Services for all other packages: whole files, outputs apart from sources, safe text, locks, streams, disk and cores."""
