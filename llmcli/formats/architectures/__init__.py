"""Architectures whose weights or configs are converted to those of another one."""
