"""The gateway's side of the link to the attention service."""
