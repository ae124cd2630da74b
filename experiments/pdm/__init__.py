"""Paper 004: detection by penetration distortion maximisation, and what is left of it."""
