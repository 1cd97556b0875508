"""Engines that others made, as bundles: their files as they are, and what evaluation needs beside them."""
