"""Engines that others built: ``clipq-export adopt``."""
