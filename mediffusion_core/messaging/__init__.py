"""Messages between server and sites: protocol, compression, serialization and disclosure."""
