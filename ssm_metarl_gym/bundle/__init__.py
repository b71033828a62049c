"""A policy, its correction and all that these need as one file, which runs on numpy alone."""

from ssm_metarl_gym.bundle.bundle import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
