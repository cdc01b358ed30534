"""A finetuned encoder for other software: one plain module, a model card, an upload."""

from __future__ import annotations

import copy
import importlib.resources
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import filter_repo_objects
from torch import nn
from torchvision.transforms import v2

from seal_lite.config import Config
from seal_lite.data.images import AnyImage, resized, to_rgb
from seal_lite.encoders.devices import resolve_precision
from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.networks.row import Backbone
from seal_lite.encoders.registry import BACKBONES, PACKAGED, backbone_row
from seal_lite.encoders.views import as_images
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError, reading
from seal_lite.model.seal import SEAL
from seal_lite.model.storage import SHARED_FILES, check_source
from seal_lite.schema import Count, Number, read
from seal_lite.training.provenance import read_provenance

if TYPE_CHECKING:
    from anndata import AnnData

    from seal_lite.data.section import Section


End = Annotated[float, Number()]  # of an interval, which no bound of r limits
Gap = Annotated[float, Number(at_least=-2, at_most=2, undefined=True)]  # of two correlations


class _Difference(TypedDict):
    of: str
    minus: str
    probe: str
    target: str
    mean: Gap
    ci95: tuple[End, End] | None  # None for one unit


class Difference(_Difference, total=False):
    """A row of the differences of a metrics.json; older ones do not state their units."""

    units: Count


class Scores(TypedDict):
    """What a model card quotes of a metrics.json."""

    delta: list[Difference]


def load_encoder(
    run: str | Path,
    *,
    precision: str = "no",
    device: str | torch.device = "auto",
    patch_um: float | None = None,
) -> tuple[nn.Module, v2.Compose, torch.dtype]:
    """Return a run's encoder as (module, transform, precision).

    This is what HEST-bench's ``benchmark(encoder, transform, precision)`` takes. Its patches show
    112 um: give ``patch_um=112`` here. Give ``latent_dim=min(256, module.row.dim)`` there, because
    its default is 256 principal components, more than a small encoder has dimensions.

    Parameters
    ----------
    run
        A run folder, or "hf-hub:OWNER/NAME".
    precision
        The type of the module's weights: "no" (float32), "bf16", "fp16" or "auto", as in
        `resolve_precision`.
    device
        Where the module is put; "auto" is the fastest of this machine (`resolve_device`).
    patch_um
        Edge in um of the images that the transform will be given; None is the run's ``patch_um``.
        Images of another size are resampled to the run's um per px.

    Returns
    -------
    module : Module
        Maps normalised images (b, 3, px, px) to embeddings (b, dim) in one forward pass, without
        adapter and unused layers; see `merge_adapter`.
    transform : Compose
        Makes such an image, (3, px, px), of a PIL image or an array (h, w, 3) uint8, with the same
        bits as `seal-lite embed` and training.
    precision : dtype
        The type of the module's weights.

    Raises
    ------
    InputError
        The precision is unknown, the run cannot be loaded, as for `SEAL.from_pretrained`, or its
        network does not read as many pixels as ``patch_um`` has at the run's scale.
    """
    model = SEAL.from_pretrained(run, device=device)
    dtype = resolve_precision(precision, model.encoder.device)
    row = model.encoder.row
    px = model.config.patch_px
    if patch_um is not None:
        px = row.px_at_scale(model.config, patch_um)
    transform = v2.Compose([Resample(px), v2.Normalize(row.mean, row.std)])
    module = merge_adapter(model.encoder).to(dtype)
    return module, transform, dtype


@dataclass(frozen=True)
class Resample:
    """Makes the image that an encoder reads of a patch, as everything else in this package does.

    Parameters
    ----------
    px
        Edge of the image in px.
    """

    px: int

    def __call__(self, image: AnyImage) -> torch.Tensor:
        """Return a PIL image, or an array (h, w, 3) uint8, as (3, px, px) float32 in [0, 1].

        Raises
        ------
        InputError
            The image has more than 8 bits a channel, or channels that are no colours.
        """
        pixels = resized(to_rgb(image, "patch"), self.px)  # (px, px, 3)
        return as_images(torch.from_numpy(pixels.copy())[None])[0]


def merge_adapter(encoder: VisionEncoder) -> VisionEncoder:
    """Return a copy of an encoder without adapter, hooks, normalisation and unused layers.

    Parameters
    ----------
    encoder
        The encoder, which stays as it is.

    Returns
    -------
    VisionEncoder
        Maps normalised images (b, 3, h, w), less the row's mean and over its standard deviation, to
        the embeddings (b, dim) that `encoder` gives of the same images in [0, 1].
    """
    net = copy.deepcopy(encoder.net)
    row = encoder.row
    if encoder.adapted:
        net = net.merge_and_unload()
    if row.feature_layer:
        _remove_unused_layers(net, row)
    row = replace(row, feature_layer="", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    merged = VisionEncoder(net, row).to(encoder.device)  # its mean and std are made on the CPU
    return merged.eval().requires_grad_(False)


def _remove_unused_layers(net: nn.Module, row: Backbone) -> None:
    """Replace all modules that run behind the row's feature layer by identities."""
    started: set[nn.Module] = set()
    used: set[nn.Module] = set()

    def record_start(module: nn.Module, args: tuple) -> None:
        started.add(module)

    def record_used(module: nn.Module, args: tuple, output: Any) -> None:
        used.update(started)

    blank = torch.zeros(1, 3, row.px, row.px, device=next(net.parameters()).device)
    with ExitStack() as stack, torch.inference_mode():
        feature_layer = net.get_submodule(row.feature_layer)
        stack.enter_context(feature_layer.register_forward_hook(record_used))
        for module in net.modules():
            stack.enter_context(module.register_forward_pre_hook(record_start))
        call = getattr(net, row.call)
        call(blank, **row.call_args)
    unused = started - used
    removed: list[str] = []
    for name, module in list(net.named_modules()):
        inside_removed = name.startswith(tuple(f"{parent}." for parent in removed))
        if module in unused and not inside_removed:
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, nn.Identity())
            removed.append(name)


def model_card(run: str | Path, *, scores: str | Path | None = None) -> ModelCard:
    """Return the README of a finished run.

    It states what the encoder was tuned from and on, its licence, and its scores.

    Parameters
    ----------
    run
        A run folder.
    scores
        A metrics.json of ``crossval`` or ``probe``. The card quotes its differences, with their 95%
        intervals.

    Raises
    ------
    InputError
        The folder is not a run, or the file holds no differences.
    """
    provenance = read_provenance(Path(run) / "provenance.json")
    settings = Config.from_json(Path(run) / "config.json")
    row = backbone_row(settings.backbone).pooled(settings.pooling)
    metadata = ModelCardData(
        library_name="seal_lite",
        base_model=row.hub_name or None,
        license="other",
        license_name=row.licence,
        license_link=row.card or None,
        tags=["pathology", "spatial transcriptomics", *(["lora"] if settings.lora_rank else [])],
    )
    template = importlib.resources.files(__package__).joinpath("card.md").read_text()
    return ModelCard.from_template(
        metadata,
        template_str=template,
        row=row,
        settings=settings,
        provenance=provenance,
        differences=_read_differences(scores),
    )


def _read_differences(scores: str | Path | None) -> list[Difference]:
    """Read the differences of a metrics.json; without a file there are none."""
    if scores is None:
        return []
    return read(scores, Scores, remedy="give a metrics.json of `crossval`")["delta"]


def prepare_upload(run: str | Path, *, scores: str | Path | None = None) -> list[Path]:
    """Do all of `push_to_hub` that needs no network: check the run, and write its card.

    Parameters
    ----------
    run
        A run folder.
    scores
        As in `model_card`.

    Returns
    -------
    list of Path
        The files that `push_to_hub` uploads.

    Raises
    ------
    InputError
        The run cannot be loaded, or the card cannot be written.
    """
    run = Path(run)
    _card_of_loadable(run, scores).save(run / "README.md")
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return [run / name for name in filter_repo_objects(names, allow_patterns=SHARED_FILES)]


def _card_of_loadable(run: str | Path, scores: str | Path | None) -> ModelCard:
    """Check that others can load a run, then return its card."""
    check_source(run, run)
    backbone = Config.from_json(Path(run) / "config.json").backbone
    if backbone in BACKBONES and backbone not in PACKAGED:
        fault = f"its encoder {backbone} is a row of your own, which others do not have"
        raise InputError(f"{run}: {fault}; finetune hf-hub:OWNER/NAME, or add the row to SEAL-lite")
    SEAL.from_pretrained(run, device="cpu")
    return model_card(run, scores=scores)


def push_to_hub(
    run: str | Path,
    repo: str,
    *,
    scores: str | Path | None = None,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Upload a finished run, with its `model_card`, to the Hugging Face hub.

    The card is also written into the run's folder, as README.md.

    Parameters
    ----------
    run
        A run folder.
    repo
        OWNER/NAME on the hub.
    scores
        As in `model_card`.
    private
        Make the repository private, if it is new.
    token
        None takes the token that ``hf auth login`` has stored.

    Returns
    -------
    str
        The address of the repository.

    Raises
    ------
    InputError
        The run cannot be loaded, the card cannot be written, or the hub refuses the upload.
    """
    card = _card_of_loadable(run, scores)
    remedy = "go online, or `hf auth login` with a token that may write"
    with reading(repo, fault="cannot be written", remedy=remedy):
        hub = HfApi(token=token)
        hub.create_repo(repo, private=private, exist_ok=True)
        card.save(Path(run) / "README.md")
        hub.upload_folder(repo_id=repo, folder_path=str(run), allow_patterns=SHARED_FILES)
    return f"https://huggingface.co/{repo}"


def add_embedding(
    section: Section, encoder: VisionEncoder, *, key_added: str = "X_seal"
) -> AnnData:
    """Return a section's spots as AnnData with the embeddings of their patches.

    scanpy and squidpy take it for neighbours, clusters and plots.

    Parameters
    ----------
    section
        Its patches should have the scale that `encoder` was tuned at. It is not changed.
    encoder
        The vision encoder.
    key_added
        Name of the embeddings in ``obsm``.

    Returns
    -------
    AnnData
        The n spots that have a patch. Written to it: ``obsm[key_added]``, (n, dim) float32.
    """
    adata = section.adata[section.rows].copy()
    adata.obsm[key_added] = embed_patches(encoder, section.patches)
    return adata
