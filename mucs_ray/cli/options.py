"""The options of the commands: one type for each with its help, and the values of those that open a run."""

from typing import Annotated, Literal

import typer

DatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="A prepared data set: a recipe's name (emoji, cifar10, ...) or its URL.")
]
RecipeOption = Annotated[str | None, typer.Option("--recipe", help="A recipe's name or a TOML file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Run directory, any fsspec URL [default: runs/RECIPE].")]
DemoRunOption = Annotated[
    str | None, typer.Option("--run", help="Run directory, any fsspec URL [default: runs/demo, runs/demo-full].")
]
FullOption = Annotated[bool, typer.Option("--full", help="Train the model here, and test the answer by removal.")]
CheckRunOption = Annotated[
    str | None, typer.Option("--run", help="A run directory that every node should share, any fsspec URL.")
]
CheckDatasetOption = Annotated[
    str | None, typer.Option("--dataset", help="URL of a prepared data set that every node should read.")
]
WeightsOption = Annotated[str | None, typer.Option("--weights", help="Attribute with these weights; do not train.")]
ItemsOption = Annotated[int | None, typer.Option("--items", help="Generated images to attribute.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Names every random number of the run.")]
ImageOption = Annotated[
    list[str] | None,
    typer.Option("--image", help="Explain this picture: a file, .safetensors or .npy of z, or idx:N. Once or more."),
]
QueriesOption = Annotated[
    str | None, typer.Option("--queries", help="Explain the pictures of this folder; metadata.jsonl has their prompts.")
]
LabelOption = Annotated[str | None, typer.Option("--label", help="The class of --image, by name or number.")]
PromptOption = Annotated[str | None, typer.Option("--prompt", help="The caption of --image.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="A recipe value, e.g. --set score.noises=50.")]
MethodOption = Annotated[
    list[str] | None, typer.Option("--method", help="Once or more, or a,b; see `mucs-ray methods` [default: mucs].")
]
ByOption = Annotated[
    str | None,
    typer.Option(
        "--by",
        help="label, text, folder, a tag of the data, or a CSV or Parquet file with idx and group [default: label].",
    ),
]
RunByOption = Annotated[
    str | None, typer.Option("--by", help="Score groups of training images too: label, text, folder, or a file.")
]
SeedsOption = Annotated[
    str | None, typer.Option("--seeds", help="Several runs side by side, e.g. 1..6 or 1,2,5, in RUN/seed-N.")
]
WeightsDirOption = Annotated[
    str | None,
    typer.Option("--weights-dir", help="Folder with weights of similarity metrics [default: MUCS_RAY_WEIGHTS]."),
]
ForOption = Annotated[
    Literal["attribute", "run", "lds", "groups"],
    typer.Option("--for", help="The command that is planned: run has retrainings, lds and groups others of their own."),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="GPUs, or CPUs without any [default: those of this machine].")
]
PriceOption = Annotated[
    float | None, typer.Option("--price", help="Of one GPU for an hour, or of one CPU without any, in your currency.")
]
AddressOption = Annotated[str | None, typer.Option("--address", help="A Ray cluster [default: RAY_ADDRESS, or local].")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Show Ray's own output too.")]
