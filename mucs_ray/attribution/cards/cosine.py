"""These are the cards of the methods that compare two vectors by their cosine: pixels, conditions, and embeddings."""

from mucs_ray.attribution.card import MethodCard, MethodStage

STAGES = (MethodStage(name="score", hook="score", uses_model=False),)

PIXEL = MethodCard(
    name="pixel",
    label="Pixel",
    summary="cosine of the pixels in [-1, 1]",
    needs="nothing",
    cost="one pass over the data",
    source="D-TRAK, baseline raw pixel (cosine)",
    stages=STAGES,
    implementation="mucs_ray.attribution.pixel:Pixel",
)
CONDITION = MethodCard(
    name="condition",
    label="Condition",
    summary="cosine of the conditions: the same class, or a similar caption",
    needs="a data set with labels or captions",
    cost="one pass over the data",
    source="MUCS, baseline",
    stages=STAGES,
    needs_condition=True,
    implementation="mucs_ray.attribution.condition:Condition",
)
CLIP = MethodCard(
    name="clip",
    label="CLIP",
    summary="cosine of the images' CLIP embeddings",
    needs="CLIP's weights",
    cost="one encoder pass over the data",
    source="MUCS, baseline",
    stages=STAGES,
    encoder="clip",
    implementation="mucs_ray.attribution.clip:CLIP",
)
DINO = MethodCard(
    name="dino",
    label="DINO",
    summary="cosine of the images' DINOv2 embeddings",
    needs="DINOv2's weights",
    cost="one encoder pass over the data",
    source="MUCS, baseline",
    stages=STAGES,
    encoder="dino",
    implementation="mucs_ray.attribution.dino:DINO",
)
