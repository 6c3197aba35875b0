"""Automatic measures of event sentences, each beside the control that it must beat. They are proxies of the human study, not ratings."""
