"""What README.md and docs/ say is done: commands, pieces of Python, tutorials, figures."""
