"""What a run writes for people and programs into its output folder."""
