"""Training of the learned solver: closed-form fits, rollouts, phases and their guard."""
