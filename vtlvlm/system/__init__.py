"""What every part asks of the machine: whole files, places that are kept apart, text that is safe to show."""
