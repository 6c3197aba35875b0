"""Reasoning over event sentences with a frozen LLaVA (Sec. III-B): plain torch and transformers, no Lightning."""
