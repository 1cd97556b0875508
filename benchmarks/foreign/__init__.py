"""Engines that others' tools make of the demo's checkpoint, in the layouts in which such engines come.

    python -m benchmarks.foreign.NAME FOLDER

Each file is one tool: it runs in that tool's own Python, writes its engines below FOLDER and prints what it made (made
by, inputs, outputs, traps). `clipq-export adopt` is tried on them, see docs/adopt.md.
"""
