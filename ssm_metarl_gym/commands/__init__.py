"""What ``python -m ssm_metarl_gym`` does: one module for each of its commands. They need no extra."""
