"""What runs leave on disk, and how it is found and read again."""
