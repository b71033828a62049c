"""What is changed here by meta-learning and adaptation: the model of the dynamics and the policy."""
