"""What scripts share: whatever two of them need stands here once.

    command_line        one frozen dataclass of options is one command line
    checks              of what a script is asked for, before it begins to work
    signals             how a script ends early, with a sentence and all that it started
    runs, logs          the folder of a training run: configuration, checkpoints, lock, progress
    records             measurements, a line each, that outlive a kill
    jobs                work for many processes, some of which waits for other work
    sb3_training        an algorithm of Stable-Baselines3 that trains in such a folder
    saved_agents        agents of Stable-Baselines3 that were saved
    dynamics_models     the small model of the dynamics that is adapted
    evaluation          the rewards of an agent in tasks that it has never met
    comparison          agents beside each other: one table of all
    statistics, report  means with their intervals, and tables
    pictures            returns, curves and films
    measuring           how fast and how large something is, on a machine that is never quiet

It needs the extra ``demo``.
"""
