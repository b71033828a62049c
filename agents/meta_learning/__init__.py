"""Meta-learning, which finds weights from which few gradient steps suffice, for any module.

``maml`` is the door: MAML and its relatives, Reptile among them, on ``tasks``. Behind it ``inner_loop`` takes a task's
steps and ``outer_loop`` the optimiser's; ``task_losses`` computes the losses of many tasks between the two, all at once
where ``vmap_limits`` allows it, faster still for plain networks (``low_rank``). ``distributed`` joins processes.
"""
