"""Clinical notes: read from files, cleaned, deduplicated and split by subject."""
