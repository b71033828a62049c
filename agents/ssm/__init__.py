"""The state-space model (SSM), which remembers: the recurrence, the model, and its use in Stable-Baselines3."""
