"""What is asked: suite files, their schema, and the views that they open."""
