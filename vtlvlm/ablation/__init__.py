"""Tables of the paper as grids: reads a grid file, plans its runs, does shared work once, runs what is missing, and prints the table."""
