"""Models onto their device, quantized, and checked: the only room that loads."""
