"""Carlini and Wagner's attacks and their rivals; natural and distilled networks (paper 001)."""
