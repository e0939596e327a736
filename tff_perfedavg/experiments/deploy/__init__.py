"""Deployment: export of trained runs, simulated devices and the web app."""
