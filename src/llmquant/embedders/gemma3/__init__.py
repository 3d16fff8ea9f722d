"""BiGemma3 and ColGemma3."""
