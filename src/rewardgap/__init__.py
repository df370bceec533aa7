"""Measure how far the ranking accuracy of reward models is from what they make a policy write."""

__version__ = "0.1.0"
