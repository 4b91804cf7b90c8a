"""What a program and its parts must be, found out before anything changes."""
