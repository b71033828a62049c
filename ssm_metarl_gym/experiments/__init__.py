"""What scripts share: whatever two of them need stands here once.

    command_line    one frozen dataclass of options is one command line
    checks          of what a script is asked for, before it begins to work
    runs, logs      the folder of a training run: configuration, checkpoints, progress
    evaluation      the rewards of agents in tasks that they have never met
    statistics      how sure a mean is
    report          means with intervals, and tables
    pictures        returns, curves and films
    measuring       how fast and how large something is, on a machine that is never quiet

It needs the extra ``demo``.
"""
