"""A second, plain and slow implementation of the published models, under the published parameter names.

Every function reads a state dict as its authors saved it, and images. They and the models of this project agree, and
both agree with the published code: ``parity.py`` compares with what that computed.
"""

import math

import torch
import torch.nn.functional as F

from map_core.testing.published import count, layer_norm, linear, scan

PATCH = 8


def rms_norm(state, name, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]


def patches_of(state, images):
    """Embedded patches, in raster order."""
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    return F.conv2d(images, weight, bias, stride=weight.shape[-1]).flatten(2).mT


def pixels_of(images, size):
    """The pixels of every patch, normalised by the patch's mean and deviation."""
    b, c, h, w = images.shape
    cut = (
        images.reshape(b, c, h // size, size, w // size, size)
        .permute(0, 2, 4, 3, 5, 1)
        .flatten(3)
        .flatten(1, 2)
    )
    return (cut - cut.mean(-1, keepdim=True)) / (cut.var(-1, keepdim=True) + 1e-6).sqrt()


def attention(q, k, v, heads, allowed=None):
    size, parts = q.shape[-1] // heads, []
    for head in range(heads):
        of_head = slice(head * size, (head + 1) * size)
        scores = q[..., of_head] @ k[..., of_head].mT / math.sqrt(size)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        parts.append(scores.softmax(-1) @ v[..., of_head])
    return torch.cat(parts, dim=-1)


def mlp(state, name, x):
    return linear(state, f"{name}.fc2", F.gelu(linear(state, f"{name}.fc1", x)))


def transformer(state, name, x, heads, eps):
    q, k, v = linear(state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x, eps)).chunk(3, dim=-1)
    x = x + linear(state, f"{name}.attn.proj", attention(q, k, v, heads))
    return x + mlp(state, f"{name}.mlp", layer_norm(state, f"{name}.norm2", x, eps))


def mix(state, name, x, orders):
    """Scan in each order (a suffix and the indices of the sequence), undo it, average, project."""
    x, z = linear(state, f"{name}.in_proj", x).chunk(2, dim=-1)
    total = 0
    for suffix, order in orders.items():
        total = total + scan(state, name, suffix, x[:, order])[:, order.argsort()]
    return linear(state, f"{name}.out_proj", total / len(orders) * F.silu(z))


def both_ways(length):
    return {"": torch.arange(length), "_b": torch.arange(length).flip(0)}


def classified(sequence, features, state, first, last):
    logits = linear(state, "head", features)
    return {
        "layer0_mixer": first, "residual_last": last, "sequence": sequence, "features": features, "logits": logits,
        "loss": logits.square().mean(),
    }  # fmt: skip


def mamba_layers(state, x):
    """Vim's and Mamba-R's layers; also returns the output of the first mixer and the input of the last layer."""
    first = None
    for i in range(count(state, "layers.")):
        mixed = mix(state, f"layers.{i}.mixer", rms_norm(state, f"layers.{i}.norm", x), both_ways(x.shape[1]))
        first = mixed if first is None else first
        last, x = x, x + mixed
    return x, first, last


def vim(state, images):
    x = patches_of(state, images)
    middle = x.shape[1] // 2
    token = state["cls_token"].expand(len(x), -1, -1)
    x, first, last = mamba_layers(
        state, torch.cat([x[:, :middle], token, x[:, middle:]], dim=1) + state["pos_embed"]
    )
    sequence = rms_norm(state, "norm_f", x)
    return classified(sequence, sequence[:, middle], state, first, last)


def mambar(state, images):
    x = patches_of(state, images) + state["pos_embed"]
    registers = (state["cls_token"] + state["pos_embed_cls"]).expand(len(x), -1, -1)
    n, pieces, gap = registers.shape[1], [], x.shape[1] // (registers.shape[1] + 1)
    for i in range(n):
        pieces += [x[:, i * gap : (i + 1) * gap], registers[:, i : i + 1]]
    x, first, last = mamba_layers(state, torch.cat([*pieces, x[:, n * gap :]], dim=1))
    sequence = rms_norm(state, "norm_f", x)
    read = sequence[:, [(i + 1) * gap + i for i in range(n)]]
    features = rms_norm(state, "norm_neck", linear(state, "neck", read).flatten(1))
    return classified(sequence, features, state, first, last)


def arm(state, images):
    x = patches_of(state, images)
    count_, middle = x.shape[1], x.shape[1] // 2
    side = math.isqrt(count_)
    token = state["cls_token"].expand(len(x), -1, -1)
    x = torch.cat([x[:, :middle], token, x[:, middle:]], dim=1) + state["pos_embed"]
    columns = torch.arange(count_).reshape(side, side).mT.flatten()
    columns = torch.cat([columns[:middle], torch.tensor([count_]), columns[middle:]])
    columns = torch.tensor([middle if i == count_ else int(i) + int(i >= middle) for i in columns])
    orders = both_ways(count_ + 1) | {"_c": columns, "_c_b": columns.flip(0)}
    first_layer = {}
    for i in range(count(state, "layers.")):
        last, mixed = x, mix(state, f"layers.{i}.mixer", layer_norm(state, f"layers.{i}.norm1", x), orders)
        x = x + mixed
        inner = layer_norm(state, f"layers.{i}.norm2", x)
        gated = F.silu(linear(state, f"layers.{i}.mlp.w1", inner)) * linear(
            state, f"layers.{i}.mlp.w2", inner
        )
        x = x + linear(state, f"layers.{i}.mlp.w3", gated)
        first_layer = first_layer or {"layer0_mixer": mixed, "layer0": x}
    sequence = layer_norm(state, "norm_f", x)
    features = (sequence[:, :middle].mean(1) + sequence[:, middle + 1 :].mean(1)) / 2
    return classified(sequence, features, state, first_layer["layer0_mixer"], last) | first_layer


def vit(state, images, heads):
    x = patches_of(state, images)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], dim=1) + state["pos_embed"]
    for i in range(count(state, "blocks.")):
        x = transformer(state, f"blocks.{i}", x, heads, 1e-6)
    if "fc_norm.weight" in state:
        return linear(state, "head", layer_norm(state, "fc_norm", x[:, 1:].mean(1), 1e-6))
    return linear(state, "head", layer_norm(state, "norm", x, 1e-6)[:, 0])


def mae(state, images, mask, heads, decoder_heads):
    """``mask`` is True for hidden patches, the same number in every image."""
    x = patches_of(state, images) + state["pos_embed"][:, 1:]
    b, length, width = x.shape
    x = x[~mask].reshape(b, -1, width)
    x = torch.cat([(state["cls_token"] + state["pos_embed"][:, :1]).expand(b, -1, -1), x], dim=1)
    for i in range(count(state, "blocks.")):
        x = transformer(state, f"blocks.{i}", x, heads, 1e-6)
    latent = layer_norm(state, "norm", x, 1e-6)
    visible = linear(state, "decoder_embed", latent)
    y = state["mask_token"].repeat(b, length, 1)
    y = y.masked_scatter(~mask[..., None], visible[:, 1:])
    y = torch.cat([visible[:, :1], y], dim=1) + state["decoder_pos_embed"]
    for i in range(count(state, "decoder_blocks.")):
        y = transformer(state, f"decoder_blocks.{i}", y, decoder_heads, 1e-6)
    prediction = linear(state, "decoder_pred", layer_norm(state, "decoder_norm", y, 1e-6)[:, 1:])
    target = pixels_of(images, state["patch_embed.proj.weight"].shape[-1])
    loss = ((prediction - target) ** 2).mean(-1)[mask].mean()
    return {"latent": latent, "prediction": prediction, "loss": loss}


def authors(state, images, mask, heads, decoder_heads):
    """Transformer blocks off the residual stream: each reads the last mixer's output and doubles it."""
    x = patches_of(state, images) + state["pos_embed"]
    b, length, width = x.shape
    stream, hidden = 0, x[~mask].reshape(b, -1, width)
    layers, blocks = count(state, "layers."), count(state, "blocks.")
    for i in range(layers):
        stream = stream + hidden
        normal = rms_norm(state, f"layers.{i}.norm", stream)
        hidden = mix(state, f"layers.{i}.mixer", normal, both_ways(hidden.shape[1]))
        if (i + 1) % (layers // blocks) == 0:
            block = f"blocks.{(i + 1) // (layers // blocks) - 1}"
            hidden = transformer(state, block, hidden, heads, 1e-5) + hidden
    encoder = rms_norm(state, "norm_f", stream + hidden)
    y = state["mask_token"].repeat(b, length, 1)
    y = y.masked_scatter(~mask[..., None], linear(state, "decoder_embed", encoder))
    y = y + state["decoder_pos_embed_learned"]
    row = torch.arange(length) // math.isqrt(length)
    for i in range(count(state, "decoder_blocks.")):
        name = f"decoder_blocks.{i}"
        q = linear(state, f"{name}.attn2.q", layer_norm(state, f"{name}.norm2_1", y))
        k, v = linear(state, f"{name}.attn2.kv", layer_norm(state, f"{name}.norm2_2", y)).chunk(2, dim=-1)
        attended = attention(q, k, v, decoder_heads, row[None] <= row[:, None])
        y = y + linear(state, f"{name}.attn2.proj", attended)
        y = y + mlp(state, f"{name}.mlp", layer_norm(state, f"{name}.norm2", y))
    prediction = linear(state, "ar_pred", layer_norm(state, "decoder_norm", y))
    target = pixels_of(images, state["patch_embed.proj.weight"].shape[-1])
    loss = ((prediction - target) ** 2).mean(-1)[mask].mean()
    return {"encoder": encoder, "prediction": prediction, "loss": loss}
