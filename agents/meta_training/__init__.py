"""Meta-training on the environments: of a model of the dynamics by transitions, of a policy by trajectories."""
