"""CLIP scores by the cosine of the images' CLIP embeddings (spec 9.3)."""

from mucs_ray.attribution.cards import cosine
from mucs_ray.attribution.embedding import EmbeddingAttributor


class CLIP(EmbeddingAttributor):
    """This method compares what the images show, with open_clip ViT-L-14, laion2b_s32b_b82k."""

    card = cosine.CLIP
