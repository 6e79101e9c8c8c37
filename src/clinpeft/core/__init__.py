"""What every other package may import: errors, table schemas, atomic files and locks."""
