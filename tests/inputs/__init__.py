"""Bad inputs, each given to a real process as a user would give it.

``table/`` lists the cases, ``runner.py`` runs one, and ``python -m tests.inputs`` prints what each
of them says, so that a person can read all lines at once.
"""
