"""Adaptation of any module at test time, within bounds."""
