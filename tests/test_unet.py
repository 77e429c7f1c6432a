"""The network: shapes, labels, gradients, and its attention against torch's own."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_CONFIG, random_network

from common.blocks import GroupNorm, SelfAttention
from common.presets import NETWORKS
from common.unet import UNet, UNetConfig, count_forward_flop, count_values

SIZE_LIMIT = 3_075_000


@pytest.mark.parametrize("name", NETWORKS)
def test_presets_keep_their_size_and_the_shape_of_the_image(name):
    model = UNet(replace(NETWORKS[name], num_classes=10))
    assert count_values(model) <= (300_000 if name == "tiny" else SIZE_LIMIT)
    assert model(torch.randn(2, 3, 32, 32), torch.rand(2), torch.tensor([0, 9])).shape == (2, 3, 32, 32)


def test_a_new_network_predicts_zero_and_trains_every_parameter():
    model = UNet(SMALL_CONFIG)
    x, t, labels = torch.randn(4, 3, 32, 32), torch.rand(4), torch.tensor([0, 1, 2, 10])
    assert not model(x, t, labels).any()
    model = random_network().train()
    model(x, t, labels).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_labels_change_the_velocity_and_no_label_is_the_null_label():
    model, x, t = random_network(), torch.randn(2, 3, 32, 32), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        assert not torch.allclose(model(x, t, torch.tensor([0, 0])), model(x, t, torch.tensor([1, 1])))
        assert torch.equal(model(x, t, None), model(x, t, torch.tensor([10, 10])))


def test_an_unconditional_network_ignores_labels():
    model = random_network(replace(SMALL_CONFIG, num_classes=0))
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        assert torch.equal(model(x, t, torch.tensor([3, 4])), model(x, t))


def test_samples_of_a_batch_do_not_touch_each_other():
    model, x, t = random_network(), torch.randn(3, 3, 32, 32), torch.rand(3)
    labels = torch.tensor([1, 2, 3])
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, labels)[1:2], model(x[1:2], t[1:2], labels[1:2]), atol=1e-5, rtol=1e-4)


def test_attention_equals_torch_scaled_dot_product_attention():
    attention = SelfAttention(32, head_width=16)
    torch.nn.init.normal_(attention.projection.weight)
    x = torch.randn(2, 32, 4, 4)
    query, key, value = attention.query_key_value(attention.norm(x)).reshape(2, 3, 2, 16, 16).unbind(1)
    expected = F.scaled_dot_product_attention(*(part.transpose(-1, -2) for part in (query, key, value)))
    expected = x + attention.projection(expected.transpose(-1, -2).reshape(2, 32, 4, 4))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_group_norm_is_over_sixteen_neighbouring_channels():
    x = torch.randn(2, 32, 4, 4) * torch.arange(1, 33)[:, None, None] + 5
    groups = x.view(2, 2, 16 * 16)
    expected = (groups - groups.mean(2, keepdim=True)) / groups.std(2, keepdim=True, correction=0)
    torch.testing.assert_close(GroupNorm(32)(x), expected.view_as(x), atol=1e-4, rtol=1e-4)


def test_flop_of_a_convolution_are_two_per_multiply_add():
    config = UNetConfig(image_size=8, patch_size=1, widths=(16,), attention_levels=(), embedding_width=16)
    model = UNet(config)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    convolutions = sum(2 * layer.weight.numel() * 64 for layer in layers)
    linear = sum(2 * layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    assert count_forward_flop(model) == convolutions + linear


@pytest.mark.parametrize("change", [{"skips": "added"}, {"blocks_per_level": [1, 2]}])
def test_every_kind_of_network_trains_all_its_parameters(change):
    config = replace(SMALL_CONFIG, **change)
    model, plain = random_network(config).train(), random_network()
    assert UNetConfig(**json.loads(json.dumps(config.to_dict()))) == config
    inputs = torch.randn(4, 3, 32, 32), torch.rand(4), torch.tensor([0, 1, 2, 10])
    assert not torch.allclose(model(*inputs), plain(*inputs))
    model(*inputs).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "multiple"),
        ({"widths": (16, 20)}, "multiple"),
        ({"attention_levels": (1,), "head_width": 12}, "multiple"),
        ({"attention_levels": (2,)}, "not levels of 2 widths"),
        ({"blocks_per_level": (1, 1, 1)}, "not one number for each"),
        ({"embedding_width": 96.0}, "whole numbers"),
        ({"widths": (-16, 32)}, "whole numbers"),
        ({"embedding_width": 15}, "not even"),
    ],
)
def test_impossible_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL_CONFIG, **change)
