"""Networks that describe images (CLIP, DINO, SSCD, LPIPS), and the places where their weights are found."""
