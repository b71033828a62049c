"""A policy, its correction and all that these need as one file, which runs on numpy alone."""
