"""What every room needs: errors, files, hashes, devices."""
