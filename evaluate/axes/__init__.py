"""The axes of reliability: each takes what an engine answered and gives estimates."""
