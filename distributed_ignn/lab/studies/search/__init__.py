"""The search for settings: successive halving over a space of them, by validation alone."""
