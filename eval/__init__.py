"""Measures models and decides which one is deployed."""
