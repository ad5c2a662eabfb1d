"""DINO scores by the cosine of the images' DINOv2 embeddings (spec 9.4)."""

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import EmbeddingAttributor


class DINO(EmbeddingAttributor):
    """This method compares what the images look like, with the class token of DINOv2 ViT-B/14."""

    card = cosine.DINO
