"""The built-in checkpoint and the generator of its data: everything works offline, and the truth is known."""
