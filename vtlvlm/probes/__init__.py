"""Linear and attention probes: the yardstick beside every result, and recognisers in their own right."""
