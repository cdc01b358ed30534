"""A finetuned encoder for other people's software: one plain module, and a model card."""

from __future__ import annotations

import copy
import importlib.resources
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from torch import nn
from torchvision.transforms import v2

from seal_lite.encoders.embedding import embed_patches
from seal_lite.encoders.registry import Backbone, backbone_row
from seal_lite.encoders.vision import VisionEncoder
from seal_lite.errors import InputError, reading
from seal_lite.io import read_json
from seal_lite.model.seal import PARTS, SEAL


def load_encoder(run, *, precision: torch.dtype = torch.float32):
    """A run folder, or "hf-hub:OWNER/NAME", as (module, transform, precision).

    `module` maps normalised images (b, 3, px, px) to embeddings (b, dim) in one forward pass: the
    adapter is merged into the weights, and what lies behind the tap is gone. `transform` makes such
    an image of a PIL one, which should show the run's `patch_um`. This is what HEST-bench's
    `benchmark(encoder, transform, precision)` takes. Raises `InputError` as `SEAL.from_pretrained`.
    """
    model = SEAL.from_pretrained(run)
    px, row = model.config.patch_px, model.encoder.row
    steps = (
        v2.ToImage(),
        v2.Resize((px, px), antialias=True),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(row.mean, row.std),
    )
    return merged(model.encoder).to(precision), v2.Compose(steps), precision


def merged(encoder: VisionEncoder) -> VisionEncoder:
    """A copy of the encoder for normalised images, without adapter, hooks and unused layers.

    Normalised: (b, 3, h, w), less the row's mean, over its standard deviation. Gives the embeddings
    (b, dim) that `encoder` gives of the same images in [0, 1].
    """
    net, row = copy.deepcopy(encoder.net), encoder.row
    if encoder.adapted:
        net = net.merge_and_unload()
    if row.tap:
        _cut_behind(net, row)
    row = replace(row, tap="", mean=(0.0,) * 3, std=(1.0,) * 3)
    return VisionEncoder(net, row).eval().requires_grad_(False)


def _cut_behind(net: nn.Module, row: Backbone):
    """Put identities in the place of all modules that run behind the row's tap."""
    reached, late = [], []

    def begin(name, module, args):
        if reached and not f"{name}.".startswith(tuple(f"{n}." for n in late)):
            late.append(name)

    with ExitStack() as undo, torch.inference_mode():
        tap = net.get_submodule(row.tap)
        undo.enter_context(tap.register_forward_hook(lambda *_: reached.append(True)))
        for name, module in net.named_modules():
            undo.enter_context(module.register_forward_pre_hook(partial(begin, name)))
        blank = torch.zeros(1, 3, row.px, row.px, device=next(net.parameters()).device)
        getattr(net, row.call)(blank, **row.call_args)
    for name in late:
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Identity())


def model_card(run, *, scores=None) -> ModelCard:
    """The README of a finished run: what it was tuned from and on, its licence, and its scores.

    `scores` is a metrics.json of `crossval` or `probe`, whose differences are quoted with their 95%
    intervals. Raises `InputError` for a file that is no such thing, and for a folder that is not a
    run.
    """
    record, settings = (read_json(Path(run) / f"{name}.json") for name in ("provenance", "config"))
    row = backbone_row(settings["backbone"])
    found = read_json(scores, remedy="give a metrics.json") if scores else {"delta": []}
    if "delta" not in found:
        raise InputError(f"{scores}: holds no differences; give a metrics.json of `crossval`")
    about = ModelCardData(
        library_name="seal_lite",
        base_model=row.source.partition("hub:")[2] or None,
        license="other",
        license_name=row.licence,
        license_link=row.card or None,
        tags=["pathology", "spatial transcriptomics", "lora"],
    )
    text = importlib.resources.files(__package__).joinpath("card.md").read_text()
    return ModelCard.from_template(
        about, template_str=text, row=row, settings=settings, record=record, delta=found["delta"]
    )


def push_to_hub(run, repo: str, *, scores=None, private: bool = True, token=None) -> str:
    """Upload a finished run, with its `model_card`, as OWNER/NAME; returns its address.

    The card is also written into the run's folder, as README.md. `token` is by default the one that
    `hf auth login` has stored. Raises `InputError` where the run cannot be loaded again, as for
    `model_card`, and where the hub cannot be written to.
    """
    SEAL.from_pretrained(run)  # nothing that cannot be loaded again is uploaded
    card = model_card(run, scores=scores)
    remedy = "go online, or `hf auth login` with a token that may write"
    with reading(repo, fault="cannot be written", remedy=remedy):
        hub = HfApi(token=token)
        hub.create_repo(repo, private=private, exist_ok=True)
        card.save(Path(run) / "README.md")
        hub.upload_folder(repo_id=repo, folder_path=str(run), allow_patterns=PARTS)
    return f"https://huggingface.co/{repo}"


def add_embedding(section, encoder, *, key_added: str = "X_seal"):
    """The section's spots that have a patch, as AnnData with their embeddings (n, dim) float32 in
    `obsm[key_added]`: what scanpy's and squidpy's neighbours, clusters and plots take.

    section: a `Section`, whose patches should have the scale that `encoder`, a `VisionEncoder`, was
    tuned at. The section itself is not changed.
    """
    adata = section.adata[section.rows].copy()
    adata.obsm[key_added] = embed_patches(encoder, section.patches)
    return adata
