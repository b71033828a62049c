"""What scripts share: command lines, runs and their logs, statistics, measuring, evaluation, reports and pictures."""
