"""Jobs on Modal."""
