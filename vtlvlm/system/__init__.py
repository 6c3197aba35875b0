"""What every part needs of the machine: files written whole, outputs kept apart from sources, text that is safe to show."""
