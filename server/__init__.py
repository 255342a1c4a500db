"""The ServerApp: rounds, aggregation, resume and evaluation."""
