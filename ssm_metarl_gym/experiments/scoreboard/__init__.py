"""Every way of coping on the same tasks: where, which agents, what they are trained on, and the figures of it."""
