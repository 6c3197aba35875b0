"""Linear and attention probes: the baselines of every result, and recognisers of their own."""
