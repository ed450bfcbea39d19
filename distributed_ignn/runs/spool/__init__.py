"""Places by URL, as a run sees them: folders of its machine, from which objects come and go."""
