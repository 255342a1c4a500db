"""Local training of the two stages; nothing here knows of rounds at other sites."""
