"""Local training of both stages at one site."""
