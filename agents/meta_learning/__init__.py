"""Meta-learning, which finds weights from which few gradient steps suffice, for any module."""
