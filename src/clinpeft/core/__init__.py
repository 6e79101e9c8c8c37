"""What every package may import: errors, table schemas, files and locks."""
