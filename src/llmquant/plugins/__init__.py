"""Plugins: what one is (`spec`), its options (`options`), and how they are found (`registry`)."""
