"""DINO: the cosine of the images' DINOv2 embeddings (spec 9.4)."""

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import EmbeddingAttributor


class DINO(EmbeddingAttributor):
    """By DINOv2 ViT-B/14, class token: what the images look like."""

    card = cosine.DINO
