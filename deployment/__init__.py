"""What runs a federation on real machines: start-up of server and site, keys, kits, checks."""
