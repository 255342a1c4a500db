"""Deployment of a federation: start-up of server and sites, keys, kits and checks."""
