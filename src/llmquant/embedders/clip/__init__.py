"""CLIP and SigLIP."""
