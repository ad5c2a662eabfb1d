"""Networks that describe images (CLIP, DINO, LPIPS), and where their weights come from."""
