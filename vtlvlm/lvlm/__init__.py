"""Classifies event sentences with a frozen LLaVA (Sec. III-B), in plain torch and transformers, without Lightning."""
