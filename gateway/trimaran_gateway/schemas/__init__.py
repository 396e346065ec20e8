"""Request bodies of each dialect, validated field by field."""
