"""The ServerApp: rounds, aggregation by component, resume, and the global judgement."""
