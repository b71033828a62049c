"""Adaptation of any module at test time, within bounds: the bounds, the state of a module, the descent."""
