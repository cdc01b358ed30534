"""The encoder of a run in other tools, by its name: the embeddings are those of `embed`."""

import importlib
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from seal_lite import InputError

REPOSITORY = Path(__file__).parents[3]
N_PATCHES = 5


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def patches(sections):
    return sections[1].patches[:N_PATCHES]


@pytest.fixture(scope="module")
def own(trained, patches):
    """The embeddings that `embed` writes."""
    from seal_lite.encoders.embedding import embed_patches

    _, model, _ = trained
    return embed_patches(model.encoder, patches)


def put_modules(monkeypatch, **contents):
    """Make modules that can be imported, and the packages around them."""
    for path, names in contents.items():
        name = path.replace("__", ".")
        parts = name.split(".")
        for end in range(1, len(parts)):
            package = ".".join(parts[:end])
            if package not in sys.modules:
                monkeypatch.setitem(sys.modules, package, ModuleType(package))
        module = ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)


# ------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("/a/c5", {"seal:c5": "/a/c5"}),
        ("/a/c5/", {"seal:c5": "/a/c5"}),
        ("/a/c5:/b/c6", {"seal:c5": "/a/c5", "seal:c6": "/b/c6"}),
        ("/a/c5:/a/../a/c5", {"seal:c5": "/a/c5"}),
        ("hf-hub:lab/c7", {"seal:c7": "hf-hub:lab/c7"}),
        ("hf-hub:lab/c7:/a/c5:", {"seal:c7": "hf-hub:lab/c7", "seal:c5": "/a/c5"}),
        (":/a/hf-hub:/b/c6", {"seal:hf-hub": "/a/hf-hub", "seal:c6": "/b/c6"}),
    ],
)
def test_runs_are_listed_as_in_path_and_have_the_names_of_their_folders(
    text, expected, monkeypatch
):
    from seal_lite.integrations.named_runs import named_runs

    monkeypatch.setattr("os.pathsep", ":")
    assert named_runs({"SEAL_LITE_RUNS": text}) == expected


def test_a_relative_folder_has_the_name_of_where_it_is(tmp_path, monkeypatch):
    from seal_lite.integrations.named_runs import named_runs

    (tmp_path / "c5/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "c5/deep")
    assert named_runs({"SEAL_LITE_RUNS": ".."}) == {"seal:c5": str(tmp_path / "c5")}
    assert named_runs({}) == {}


def test_two_runs_of_one_name_are_an_error():
    from seal_lite.integrations.named_runs import named_runs

    with pytest.raises(InputError, match="/a/c5 and hf-hub:lab/c5 are both called seal:c5; rename"):
        named_runs({"SEAL_LITE_RUNS": "/a/c5:hf-hub:lab/c5"})


def test_the_facts_of_a_run_need_its_settings_only(trained, tmp_path):
    from seal_lite.integrations.named_runs import read_facts

    run, model, _ = trained
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    facts = read_facts(tmp_path)
    row = model.encoder.row
    assert (facts.dim, facts.px) == (row.dim, model.config.patch_px)
    assert facts.um_per_px == model.config.patch_um / model.config.patch_px
    assert (facts.mean, facts.std) == (tuple(row.mean), tuple(row.std))
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: cannot be read .*; give a folder"):
        read_facts(tmp_path)


def test_the_facts_of_pooled_tokens_have_their_width(tmp_path):
    from seal_lite import Config
    from seal_lite.integrations.named_runs import read_facts

    for pooling, dim in (("class", 64), ("class+mean", 128)):
        config = Config(backbone="test_vit", pooling=pooling)
        (tmp_path / "config.json").write_text(config.to_json())
        assert read_facts(tmp_path).dim == dim


def test_of_a_run_on_the_hub_only_the_settings_are_fetched(trained, monkeypatch):
    from seal_lite.integrations.named_runs import read_facts
    from seal_lite.model import storage

    asked = []

    def fetch(repository, *, allow_patterns):
        asked.append((repository, allow_patterns))
        return str(trained[0])

    monkeypatch.setattr(storage, "snapshot_download", fetch)
    read_facts("hf-hub:lab/c7")
    assert asked == [("lab/c7", ["config.json"])]


# ------------------------------------------------------------------------------ slide2vec


class StandInTile:
    """What slide2vec 7.1's TorchTileEncoder does, as far as an adapter depends on it."""

    def __init__(self, model, *, encode_dim, input_size, mean, std, output_variant=None):
        from torchvision.transforms import v2

        assert output_variant in (None, "default")
        self.encode_tiles = model.eval()
        self.encode_dim = encode_dim
        self._steps = [v2.ToImage(), v2.ToDtype(model_dtype(model), scale=True)]
        self._steps.append(v2.Normalize(mean, std))

    def get_normalization_transform(self):
        from torchvision.transforms import v2

        return v2.Compose(self._steps)


def model_dtype(model):
    return next(model.parameters()).dtype


class StandInRegistry:
    """Classes and metadata by name, as slide2vec's registry keeps them."""

    def __init__(self):
        self.classes = {}
        self.metadata = {}

    def add(self, name, **metadata):
        def keep(cls):
            self.classes[name] = cls
            self.metadata[name] = metadata
            return cls

        return keep

    def require(self, name):
        return self.classes[name]

    def info(self, name):
        return self.metadata[name]


@pytest.fixture(params=["stand-in", "real"])
def slide2vec_registry(request, monkeypatch):
    """slide2vec's registry; the real one where the package is installed."""
    if request.param == "real":
        reason = "slide2vec is not installed: it needs transformers<5"
        real = pytest.importorskip("slide2vec.encoders.registry", reason=reason)
        monkeypatch.setattr(real.encoder_registry, "_entries", {})
        return real.encoder_registry
    registry = StandInRegistry()
    put_modules(
        monkeypatch,
        slide2vec__encoders__base={"TorchTileEncoder": StandInTile},
        slide2vec__encoders__registry={"register_encoder": registry.add},
    )
    return registry


def test_slide2vec_knows_the_runs_by_name_and_embeds_as_we_do(
    torch, slide2vec_registry, trained, patches, own, monkeypatch
):
    from seal_lite.integrations.slide2vec import register_runs

    run, model, _ = trained
    monkeypatch.setenv("SEAL_LITE_RUNS", str(run))
    register_runs()
    facts = slide2vec_registry.info(f"seal:{run.name}")
    assert facts["input_size"] == model.config.patch_px
    assert facts["supported_spacing_um"] == model.config.patch_um / model.config.patch_px
    assert facts["precision"] == "fp32"
    encoder = slide2vec_registry.require(f"seal:{run.name}")(output_variant=None)
    assert encoder.encode_dim == own.shape[1]
    for transform in (encoder.get_transform(), encoder.get_normalization_transform()):
        images = torch.stack([transform(Image.fromarray(patch)) for patch in patches])
        with torch.inference_mode():
            np.testing.assert_allclose(encoder.encode_tiles(images), own, atol=1e-5)


def test_slide2vec_registers_a_run_without_loading_it(
    slide2vec_registry, trained, tmp_path, monkeypatch
):
    from seal_lite.integrations.slide2vec import register_runs

    run, *_ = trained
    (tmp_path / "c5").mkdir()
    (tmp_path / "c5/config.json").write_text((run / "config.json").read_text())
    monkeypatch.setenv("SEAL_LITE_RUNS", str(tmp_path / "c5"))
    register_runs()
    make = slide2vec_registry.require("seal:c5")
    with pytest.raises(InputError, match="panel.json"):
        make()


def test_the_entry_point_of_slide2vec_leads_to_the_function():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    (target,) = project["entry-points"]["slide2vec.encoders"].values()
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


# ------------------------------------------------------------------------------ lazyslide


@pytest.fixture
def lazyslide_models():
    models = pytest.importorskip("lazyslide_models")
    importlib.import_module("seal_lite.integrations.lazyslide")
    return models


def test_lazyslide_knows_seal_as_a_vision_model(lazyslide_models):
    assert "seal" in lazyslide_models.list_models("vision")
    with pytest.raises(InputError, match="names no run; give model_path=RUN"):
        lazyslide_models.MODEL_REGISTRY["seal"]()


def test_lazyslide_extracts_what_embed_writes_by_the_models_name(
    lazyslide_models, trained, tmp_path
):
    lazyslide = pytest.importorskip("lazyslide")
    wsidata = pytest.importorskip("wsidata")
    from seal_lite.data.images import open_slide

    tifffile = pytest.importorskip("tifffile")
    from seal_lite.encoders.embedding import embed_patches

    run, model, _ = trained
    texture = np.random.default_rng(0).integers(0, 50, (64, 64, 3), np.uint8)
    texture += np.array((170, 90, 140), np.uint8)  # pink, as lazyslide finds tissue
    image = np.full((1024, 1024, 3), 245, np.uint8)
    image[128:896, 128:896] = texture.repeat(12, 0).repeat(12, 1)
    um_per_px = 1.0
    per_cm = 1e4 / um_per_px
    stored = {"tile": (256, 256), "compression": "deflate", "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", image, resolution=(per_cm, per_cm), **stored)
    wsi = wsidata.open_wsi(str(tmp_path / "a.tif"), store=str(tmp_path / "a.zarr"))
    lazyslide.pp.find_tissues(wsi)
    edge = round(model.config.patch_um / um_per_px)
    lazyslide.pp.tile_tissues(wsi, edge, mpp=um_per_px, slide_mpp=um_per_px)
    lazyslide.tl.feature_extraction(wsi, "seal", model_path=run, device="cpu", pbar=False)
    features = np.asarray(wsi.tables["seal_tiles"].X)
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy()
    slide = open_slide(tmp_path / "a.tif")  # as lazyslide's reader, to the bit: no JPEG
    px = model.config.patch_px
    seen = np.stack([slide.read(x, y, edge=edge, px=px) for x, y in corners])
    assert len(features)
    np.testing.assert_allclose(features, embed_patches(model.encoder, seen), atol=1e-5)


# ------------------------------------------------------------------------------ TRIDENT


@pytest.fixture
def trident(torch, monkeypatch):
    """A stand-in for TRIDENT, which the package index does not have: its registry's contract.

    The registry maps a name to a class, the factory makes an instance with keywords, and `_build`
    returns module, transform and precision.
    """

    class StandInBase(torch.nn.Module):
        def __init__(self, weights_path=None, **options):
            super().__init__()
            self.enc_name = None
            self.weights_path = weights_path
            self.model, self.eval_transforms, self.precision = self._build(**options)

        def forward(self, x):
            return self.model(x)

    registry = {}
    names = {"BasePatchEncoder": StandInBase, "encoder_registry": registry}
    put_modules(monkeypatch, trident__patch_encoder_models__load=names)
    return registry


def test_trident_makes_the_encoder_by_its_name_and_embeds_as_we_do(
    torch, trident, trained, patches, own
):
    from seal_lite.integrations.trident import register

    run, *_ = trained
    register(run)
    register("nowhere", name="c6")
    for encoder in (trident["seal"](weights_path=None), trident["c6"](weights_path=str(run))):
        images = torch.stack([encoder.eval_transforms(Image.fromarray(p)) for p in patches])
        with torch.inference_mode():
            np.testing.assert_allclose(encoder(images), own, atol=1e-5)
        assert encoder.precision == torch.float32
    assert encoder.enc_name == "c6"
    with pytest.raises(InputError, match="nowhere"):
        trident["c6"]()
