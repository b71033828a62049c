"""Meta-training on the environments: of a model of the dynamics by transitions, of a policy by trajectories.

``trainer`` has the class to use, ``objectives`` what it can train for: ``dynamics_objective`` on ``streams`` of random
actions, or ``policy_objective`` by proximal meta-policy search (``promp``, ``surrogates``) on ``trajectories``.
``archive`` is the file that a trainer is saved in.
"""
