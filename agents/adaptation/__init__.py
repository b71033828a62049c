"""Adaptation of any module at test time, within bounds: by gradient steps, least squares or a Kalman filter."""
