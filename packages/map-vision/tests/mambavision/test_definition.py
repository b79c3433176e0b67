"""The model equals a second, slow implementation after the paper's text and the published shapes.

``define`` reads a state dict with plain PyTorch calls: the scan step by step, windows cut by indices. It and the
model are equal to the published code too: ``parity.py`` compares with what that computes.
"""

import pytest
import torch
import torch.nn.functional as F

DEPTHS, HEADS, WINDOWS = (1, 1, 2, 2), (2, 4), (4, 2)  # of conftest's pyramid
SIZES = [(64, 64), (96, 80), (33, 70)]


def batch_norm(state, name, x, eps=1e-5):
    mean, variance = (state[f"{name}.running_{part}"][:, None, None] for part in ("mean", "var"))
    weight, bias = (state[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def layer_norm(state, name, x):
    deviation = x - x.mean(-1, keepdim=True)
    normal = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def centred_conv(state, name, x):
    """SiLU of each channel's taps on the step before, the step itself and the one after."""
    taps = state[f"{name}.weight"][:, 0]  # (e, 3)
    steps = []
    for t in range(x.shape[1]):
        around = [x[:, t + k - 1] * taps[:, k] for k in range(3) if 0 <= t + k - 1 < x.shape[1]]
        steps.append(F.silu(sum(around)))
    return torch.stack(steps, dim=1)


def mix(state, name, x):
    """One half of the channels is scanned step by step; the other is only convolved."""
    x, z = (x @ state[f"{name}.in_proj.weight"].mT).chunk(2, dim=-1)
    x, z = centred_conv(state, f"{name}.conv1d_x", x), centred_conv(state, f"{name}.conv1d_z", z)
    projected = x @ state[f"{name}.x_proj.weight"].mT
    dt, B, C = projected.split([projected.shape[-1] - 16, 8, 8], dim=-1)
    step = F.softplus(dt @ state[f"{name}.dt_proj.weight"].mT + 2 * state[f"{name}.dt_proj.bias"])
    A, memory, outputs = -state[f"{name}.A_log"].exp(), torch.zeros(*x.shape[::2], 8, dtype=x.dtype), []
    for t in range(x.shape[1]):
        now = step[:, t, :, None]
        memory = (now * A).exp() * memory + now * B[:, t, None] * x[:, t, :, None]
        outputs.append((memory * C[:, t, None]).sum(-1) + state[f"{name}.D"] * x[:, t])
    return torch.cat([torch.stack(outputs, dim=1), z], dim=-1) @ state[f"{name}.out_proj.weight"].mT


def attend(state, name, x, heads):
    q, k, v = F.linear(x, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"]).chunk(3, dim=-1)
    size, parts = x.shape[-1] // heads, []
    for head in range(heads):
        of_head = slice(head * size, (head + 1) * size)
        weights = (q[..., of_head] @ k[..., of_head].mT / size**0.5).softmax(-1)
        parts.append(weights @ v[..., of_head])
    return F.linear(torch.cat(parts, dim=-1), state[f"{name}.proj.weight"], state[f"{name}.proj.bias"])


def token_block(state, name, x, *, heads):
    """``heads`` is None where the block scans."""
    scale = [state.get(f"{name}.gamma_{i}", torch.ones(())) for i in (1, 2)]
    normal = layer_norm(state, f"{name}.norm1", x)
    mixer = f"{name}.mixer"
    x = x + scale[0] * (mix(state, mixer, normal) if heads is None else attend(state, mixer, normal, heads))
    fc1, fc2 = ((state[f"{name}.mlp.{fc}.weight"], state[f"{name}.mlp.{fc}.bias"]) for fc in ("fc1", "fc2"))
    return x + scale[1] * F.linear(F.gelu(F.linear(layer_norm(state, f"{name}.norm2", x), *fc1)), *fc2)


def token_stage(state, name, x, *, depth, heads, window):
    """Every window separately: zeros outside the map, then all blocks over its tokens in raster order."""
    b, d, height, width = x.shape
    out = torch.zeros_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            rows, cols = min(window, height - top), min(window, width - left)
            tokens = torch.zeros(b, d, window, window, dtype=x.dtype)
            tokens[:, :, :rows, :cols] = x[:, :, top : top + rows, left : left + cols]
            tokens = tokens.flatten(2).mT
            for i in range(depth):
                attends = i >= (depth + 1) // 2
                tokens = token_block(state, f"{name}.blocks.{i}", tokens, heads=heads if attends else None)
            whole = tokens.mT.reshape(b, d, window, window)
            out[:, :, top : top + rows, left : left + cols] = whole[:, :, :rows, :cols]
    return out


def conv_stage(state, name, x, *, depth):
    for block in (f"{name}.blocks.{i}" for i in range(depth)):
        conv1, conv2 = ((state[f"{block}.conv{i}.weight"], state[f"{block}.conv{i}.bias"]) for i in (1, 2))
        y = batch_norm(state, f"{block}.norm1", F.conv2d(x, *conv1, padding=1))
        y = 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + batch_norm(state, f"{block}.norm2", F.conv2d(y, *conv2, padding=1))
    return x


def define(state, images):
    """The maps behind the four stages, and the logits."""
    x = images
    for conv, norm in ((0, 1), (3, 4)):
        x = F.conv2d(x, state[f"patch_embed.conv_down.{conv}.weight"], stride=2, padding=1)
        x = F.relu(batch_norm(state, f"patch_embed.conv_down.{norm}", x, eps=1e-4))
    stages = []
    for i, depth in enumerate(DEPTHS):
        if i < 2:
            x = conv_stage(state, f"levels.{i}", x, depth=depth)
        else:
            x = token_stage(state, f"levels.{i}", x, depth=depth, heads=HEADS[i - 2], window=WINDOWS[i - 2])
        stages.append(x)
        if i < 3:
            x = F.conv2d(x, state[f"levels.{i}.downsample.reduction.0.weight"], stride=2, padding=1)
    pooled = batch_norm(state, "norm", x).mean((2, 3))
    return stages, F.linear(pooled, state["head.weight"], state["head.bias"])


def images(*size):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layer_scale", [None, 0.5])
def test_stages_and_logits_are_the_definitions(make_pyramid, size, layer_scale):
    model, x = make_pyramid(layer_scale=layer_scale), images(*size)
    stages, logits = define({key: value.double() for key, value in model.state_dict().items()}, x)
    final, maps = model.forward_intermediates(x.float())
    assert len(maps) == 4
    for one, expected in zip(maps, stages, strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(model.forward_head(final).double(), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(x.float()), model.forward_head(final))


def test_gradients_are_the_definitions(make_pyramid):
    model, x = make_pyramid(layer_scale=0.5), images(96, 80)
    state = {key: value.double() for key, value in model.state_dict().items()}
    learned = {key: state[key].requires_grad_() for key, _ in model.named_parameters()}
    define(state, x)[1].square().mean().backward()
    model(x.float()).square().mean().backward()
    for name, parameter in model.named_parameters():
        expected = learned[name].grad
        assert expected.abs().max() > 0, name
        tolerance = 2e-4 * expected.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=0, atol=tolerance, msg=name)
