"""Autoencoders: the three spaces, and the files third parties publish their weights in.

The networks under test are narrow: the same levels, blocks and tensor names as the published ones.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from emigm.autoencoders import autoencoder
from emigm.autoencoders.autoencoder import KL16, Pixels, kl16_official_name, load_autoencoder
from emigm.config.errors import ConfigError, RunError
from emigm.config.schema import AutoencoderConfig

KL16_WIDTHS = (32, 32, 64, 64, 128)  # the published ones over 4
DCAE_WIDTHS = (8, 16, 32, 32, 64, 64)  # the published ones over 16


def random_pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# --- The KL-16 as its file describes it: names, shapes and the computation, with no diffusers in between.


class LDM:
    """What the tensors of kl16.ckpt compute, for the given level widths. Each is drawn where it is first used, so that
    activations are of order one and no norm or bias has its initial value."""

    def __init__(self, widths, device="cpu"):
        torch.manual_seed(0)
        self.widths, self.device, self.tensors = widths, device, {}
        self.images(self.moments(torch.zeros(1, 3, 32, 32, device=device))[:, :16])

    def layer(self, name, *shape):
        if f"{name}.weight" not in self.tensors:
            weight, bias = torch.randn(shape, device=self.device), torch.randn(shape[:1], device=self.device)
            weight = weight / math.prod(shape[1:]) ** 0.5 if len(shape) > 1 else 1 + 0.1 * weight
            self.tensors |= {f"{name}.weight": weight, f"{name}.bias": 0.1 * bias}
        return self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]

    def conv(self, name, x, width=None, side=3, **how):
        weight, bias = self.layer(name, width or x.shape[1], x.shape[1], side, side)
        return F.conv2d(x, weight, bias, **({"padding": side // 2} | how))

    def norm(self, name, x):
        return F.group_norm(x, 32, *self.layer(name, x.shape[1]), 1e-6)

    def block(self, name, x, width):
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), width)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        return h + (x if x.shape[1] == width else self.conv(f"{name}.nin_shortcut", x, width, side=1))

    def attention(self, name, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h, side=1).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k / q.shape[1] ** 0.5).softmax(dim=2)
        return x + self.conv(f"{name}.proj_out", (v @ weights.transpose(1, 2)).view_as(x), side=1)

    def middle(self, name, x):
        x = self.attention(f"{name}.attn_1", self.block(f"{name}.block_1", x, x.shape[1]))
        return self.block(f"{name}.block_2", x, x.shape[1])

    def end(self, side, x, width):
        return self.conv(f"{side}.conv_out", F.silu(self.norm(f"{side}.norm_out", x)), width)

    def moments(self, x):
        x = self.conv("encoder.conv_in", x, self.widths[0])
        for i, width in enumerate(self.widths):
            for j in range(2):
                x = self.block(f"encoder.down.{i}.block.{j}", x, width)
                if i == 4:
                    x = self.attention(f"encoder.down.4.attn.{j}", x)
            if i < 4:
                x = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
        return self.conv("quant_conv", self.end("encoder", self.middle("encoder.mid", x), 32), side=1)

    def images(self, z):
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z, side=1), self.widths[-1])
        x = self.middle("decoder.mid", x)
        for i, width in reversed(list(enumerate(self.widths))):
            for j in range(3):
                x = self.block(f"decoder.up.{i}.block.{j}", x, width)
            if i > 0:
                x = self.conv(f"decoder.up.{i}.upsample.conv", F.interpolate(x, scale_factor=2))
        return self.end("decoder", x, 3)


@pytest.fixture
def narrow_kl16(monkeypatch):
    """What a narrow kl16.ckpt computes, which `load_autoencoder` then expects."""
    monkeypatch.setitem(autoencoder.KL16_CONFIG, "block_out_channels", KL16_WIDTHS)
    return LDM(KL16_WIDTHS)


def save_kl16(path, tensors):
    torch.save({"model": tensors}, path)
    return AutoencoderConfig("kl16", 0.2325, str(path))


@pytest.fixture
def narrow_dcae(monkeypatch):
    """A narrow AutoencoderDC of diffusers, which `load_autoencoder` then expects."""
    from diffusers import AutoencoderDC

    for side in ("encoder", "decoder"):
        monkeypatch.setitem(autoencoder.DCAE_CONFIG, f"{side}_block_out_channels", DCAE_WIDTHS)
    torch.manual_seed(0)
    module = AutoencoderDC(**autoencoder.DCAE_CONFIG).eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim == 1:  # norms and biases away from 0 and 1
                tensor.add_(0.2 * torch.rand_like(tensor))
    return module


# --- Pixels


@pytest.mark.parametrize(("channels", "scale"), [(1, 1.0), (3, 0.7), (3, 2.3)])
def test_every_pixel_value_survives_the_round_trip_of_kind_pixels(channels, scale):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, channels, 1, 1)
    ae = load_autoencoder(AutoencoderConfig("pixels", scale))
    raw = ae.encode(pixels)
    assert raw.dtype == torch.float32 and raw.min() == -1 and raw.max() == 1
    unit = ae.sample(raw)
    torch.testing.assert_close(unit, raw * scale)
    assert torch.equal(ae.decode(unit), pixels)
    assert torch.equal(ae.decode(ae.sample(ae.encode(pixels.flip(3)))), pixels.flip(3))


def test_decoded_pixels_are_clipped_and_rounded_as_numpy_does():
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, :4] = torch.tensor([0.0, -7.0, 7.0, 1.0])
    decoded = Pixels(1.0).decode(x).numpy()
    np.testing.assert_array_equal(decoded, np.round(np.clip((x.numpy() + 1) / 2 * 255, 0, 255)).astype(np.uint8))
    assert decoded[0, 0, 0, :4].tolist() == [128, 0, 255, 255]


# --- Both


@pytest.fixture(params=["kl16", "dcae"])
def convolutional(request, tmp_path):
    """A function of a precision, that loads a narrow autoencoder."""
    if request.param == "kl16":
        cfg = save_kl16(tmp_path / "kl16.ckpt", request.getfixturevalue("narrow_kl16").tensors)
    else:
        save_file(request.getfixturevalue("narrow_dcae").state_dict(), tmp_path / autoencoder.DIFFUSERS_FILE)
        cfg = AutoencoderConfig("dcae", 0.3189, str(tmp_path))
    return lambda precision: load_autoencoder(dataclasses.replace(cfg, precision=precision))


@pytest.mark.parametrize(("precision", "worst"), [("tf32", 0.0), ("float16", 0.02), ("bf16", 0.15)])
def test_precision_moves_latents_and_pixels_by_rounding_alone_and_leaves_latents_float32(
    convolutional, precision, worst
):
    exact, rounded = convolutional("float32"), convolutional(precision)
    pixels = random_pixels(2, 3, 64, 64)
    raw = exact.encode(pixels)
    found = rounded.encode(pixels)
    assert found.dtype == torch.float32 and ((found - raw).abs().mean() / raw.std()).item() <= worst
    assert found.equal(raw) == (precision == "tf32")  # a CPU has none
    unit = exact.sample(raw, torch.Generator().manual_seed(0))
    levels = (rounded.decode(unit).float() - exact.decode(unit).float()).abs().mean().item()
    assert levels <= 127 * worst


@pytest.mark.parametrize("convolutional", ["dcae"], indirect=True)
def test_linear_attention_is_computed_in_float32(convolutional, monkeypatch):
    from diffusers.models.attention_processor import SanaMultiscaleLinearAttention as Attention

    inside, attend = [], Attention.apply_linear_attention

    def spy(self, *tensors):
        inside.append((torch.is_autocast_enabled("cpu"), {t.dtype for t in tensors}))
        return attend(self, *tensors)

    monkeypatch.setattr(Attention, "apply_linear_attention", spy)
    convolutional("float16").encode(random_pixels(1, 3, 512, 512))
    assert set(map(str, inside)) == {str((False, {torch.float32}))}


def test_an_overflow_is_an_error_that_names_the_precision():
    class Loud(Pixels):
        def _decode(self, latents):
            return (latents.to(torch.float16) * 1e6).float()

        _encode = _decode

    ae = Loud(1.0, precision="float16")
    for work in (lambda: ae.encode(random_pixels(1, 1, 8, 8)), lambda: ae.decode(torch.randn(3, 1, 8, 8), batch=2)):
        with pytest.raises(RunError, match=r"65504; set autoencoder\.precision: bf16 or float32"):
            work()


def test_images_are_encoded_and_decoded_in_batches_as_at_once(convolutional):
    ae, pixels = convolutional("float32"), random_pixels(5, 3, 64, 64)
    weights = [m.weight for m in ae.module.modules() if isinstance(m, nn.Conv2d)]
    assert len(weights) > 10 and all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
    raw = ae.encode(pixels, batch=5)
    torch.testing.assert_close(ae.encode(pixels, batch=2), raw)
    unit = ae.sample(raw, torch.Generator().manual_seed(0))
    sizes = []
    ae.module.decoder.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    parts, whole = ae.decode(unit, batch=2), ae.decode(unit, batch=5)
    assert sizes == [2, 2, 1, 5] and parts.dtype == torch.uint8 and parts.shape == pixels.shape
    assert (parts.int() - whole.int()).abs().max() <= 1


# --- KL-16 and DC-AE


def test_the_networks_have_the_published_tensors():
    from diffusers import AutoencoderDC, AutoencoderKL

    with torch.device("meta"):
        modules = AutoencoderKL(**autoencoder.KL16_CONFIG), AutoencoderDC(**autoencoder.DCAE_CONFIG)
    assert [sum(p.numel() for p in m.parameters()) for m in modules] == [66_456_019, 323_356_460]
    ours = {kl16_official_name(n): tuple(t.shape) for n, t in modules[0].state_dict().items()}
    published = {n: tuple(t.shape) for n, t in LDM((128, 128, 256, 256, 512), "meta").tensors.items()}
    assert len(published) == 312 == len(modules[0].state_dict())
    assert {n: (*s, 1, 1) if len(s) == 2 else s for n, s in ours.items()} == published


def test_a_kl16_checkpoint_computes_what_its_tensors_say(narrow_kl16, tmp_path):
    ldm = narrow_kl16
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(3)}  # not of the model
    ae = load_autoencoder(save_kl16(tmp_path / "kl16.ckpt", ldm.tensors | loss))
    pixels = random_pixels(2, 3, 64, 48)
    moments = ldm.moments(pixels.float() / 127.5 - 1)
    raw, flipped = ae.encode(pixels), ae.encode(pixels.flip(3))
    assert raw.shape == (2, 32, 4, 3) and moments.std() > 0.1
    torch.testing.assert_close(raw, moments, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(flipped, ldm.moments(pixels.flip(3).float() / 127.5 - 1), rtol=1e-4, atol=1e-5)
    images = ldm.images(moments[:, :16])
    assert images.std() > 0.1
    expected = ((images + 1) / 2 * 255).clamp(0, 255).round()
    assert (ae.decode(moments[:, :16] * 0.2325).float() - expected).abs().max() <= 1  # 1: a value beside a half
    # The layout of diffusers too; in half precision, as many are published, it is computed in float32 all the same.
    state = {n: t.half().contiguous() for n, t in ae.module.state_dict().items()}
    save_file(state, tmp_path / autoencoder.DIFFUSERS_FILE)
    again = load_autoencoder(AutoencoderConfig("kl16", 0.2325, str(tmp_path))).encode(pixels)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, raw, rtol=0.02, atol=0.02)


def test_kl16_latents_are_drawn_from_the_stored_distribution():
    mean, std, scale = 3.0, 0.5, 0.2325
    raw = torch.cat([torch.full((256, 16, 8, 8), mean), torch.full((256, 16, 8, 8), 2 * np.log(std))], dim=1)
    ae = KL16(nn.Identity(), scale)
    unit, again, other = (ae.sample(raw, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert unit.shape == (256, 16, 8, 8) and torch.equal(unit, again) and not torch.equal(unit, other)
    assert unit.mean().item() == pytest.approx(mean * scale, abs=1e-3)
    assert unit.std().item() == pytest.approx(std * scale, rel=1e-2)
    noise = torch.randn(raw[:, :16].shape, generator=torch.Generator().manual_seed(0))
    for logvar, expected in ((1e4, np.exp(10)), (-1e4, np.exp(-15))):  # an extreme log-variance is clamped
        raw[:, :16], raw[:, 16:] = 0, logvar
        torch.testing.assert_close(ae.sample(raw, torch.Generator().manual_seed(0)), noise * expected * scale)


def test_a_dcae_folder_computes_what_diffusers_does(narrow_dcae, tmp_path):
    save_file(narrow_dcae.state_dict(), tmp_path / autoencoder.DIFFUSERS_FILE)
    ae = load_autoencoder(AutoencoderConfig("dcae", 0.3189, str(tmp_path)))
    pixels = random_pixels(2, 3, 64, 64)
    with torch.inference_mode():
        latents = narrow_dcae.encode(pixels.float() / 127.5 - 1).latent
        images = narrow_dcae.decode(latents).sample
    raw = ae.encode(pixels)
    assert raw.shape == (2, 32, 2, 2) and raw.std() > 0.1
    torch.testing.assert_close(raw, latents)
    unit = ae.sample(raw, torch.Generator())
    torch.testing.assert_close(unit, raw * 0.3189)
    expected = ((images + 1) / 2 * 255).clamp(0, 255).round()
    assert expected.std() > 1
    assert (ae.decode(unit).float() - expected).abs().max() <= 1
    assert not any(p.requires_grad for p in ae.module.parameters())


# --- Mistakes


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("kl16", {"encoder.down.4.attn.1.q.weight": None}, "encoder.down.4.attn.1.q.weight is missing"),
        ("kl16", {"encoder.down.3.attn.0.q.bias": (1,)}, "encoder.down.3.attn.0.q.bias belongs"),
        ("kl16", {"quant_conv.weight": (8, 8, 1, 1)}, r"quant_conv.weight .*\(8, 8, 1, 1\)"),
        ("kl16", dict, "decoder.conv_in.bias is missing"),
        ("dcae", {"encoder.stages.2.extra.weight": (1,)}, "encoder.down_blocks.2.extra.weight belongs to no part"),
        ("dcae", {"decoder.up_blocks.2.3.conv1.bias": None}, "decoder.up_blocks.2.3.conv1.bias is missing"),
    ],
)
def test_a_file_with_other_tensors_is_refused_by_name(request, tmp_path, kind, changes, message):
    narrow, path = request.getfixturevalue(f"narrow_{kind}"), tmp_path / "weights"
    tensors = narrow.tensors if kind == "kl16" else narrow.state_dict()
    changed = {} if changes is dict else tensors | {n: s and torch.zeros(s) for n, s in changes.items()}
    changed = {name: tensor for name, tensor in changed.items() if tensor is not None}
    if kind == "dcae":
        save_file(changed, path := path.with_suffix(".safetensors"))
        cfg, remedy = AutoencoderConfig("dcae", 0.3189, str(path)), "dc-ae-f32c32-in-1.0"
    else:
        cfg, remedy = save_kl16(path, changed), "kl16.ckpt as MAR"
        with pytest.raises(ConfigError, match=f"{path}: expected named tensors, found .*model: dict.*kind: dcae"):
            load_autoencoder(dataclasses.replace(cfg, kind="dcae"))
    with pytest.raises(ConfigError, match=f"{path}.*{message}.*{remedy}") as e:
        load_autoencoder(cfg)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", [KL16, autoencoder.DCAE])
def test_latents_of_another_autoencoder_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"not of 8; set model\.channels: {kind.latent_channels}"):
        kind(nn.Identity(), 1.0).decode(torch.zeros(1, 8, 2, 2))


@pytest.mark.parametrize(("kind", "remedy"), [("kl16", "kl16.ckpt as MAR"), ("dcae", "folder of dc-ae-f32c32-in-1.0")])
def test_a_missing_file_is_refused_with_what_to_give(tmp_path, kind, remedy):
    with pytest.raises(ConfigError, match=f"nothing.here: no such file.*{remedy}"):
        load_autoencoder(AutoencoderConfig(kind, 1.0, str(tmp_path / "nothing.here")))
    with pytest.raises(ConfigError, match=f"no .*{autoencoder.DIFFUSERS_FILE} in this folder.*{remedy}"):
        load_autoencoder(AutoencoderConfig(kind, 1.0, str(tmp_path)))
