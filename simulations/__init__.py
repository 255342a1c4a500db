"""Simulated federations: command line, engine, baselines, studies and tables of results."""
