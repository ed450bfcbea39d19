"""Places by URL: how they are written, and what lies there. Nothing of a run is known here."""
