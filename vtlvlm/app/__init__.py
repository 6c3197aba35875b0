"""The page in the browser: clips in, probabilities and the event timeline out; the same recogniser for programs over HTTP."""
