"""What published point checkpoints compute, written a second time under their names, plainly and slowly.

Every function reads a state dict as its authors saved it, and clouds. They and the models of this project agree, and
both agree with the published code: ``parity.py`` compares with what that computed.
"""

import math

import torch
import torch.nn.functional as F

from map_core.testing.published import count, layer_norm, linear, scan


def batch_norm(state, name, x):
    """Batch normalisation of channels in the last axis, as in evaluation."""
    normal = (x - state[f"{name}.running_mean"]) / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return normal * state[f"{name}.weight"] + state[f"{name}.bias"]


def strip_prefix(state, prefix):
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


# ---- patches


def farthest_points(cloud, number):
    """Indices, from point 0, none near the origin."""
    indices, nearest = [0], [math.inf] * len(cloud)
    for _ in range(number - 1):
        for i, point in enumerate(cloud):
            nearest[i] = min(nearest[i], float((point - cloud[indices[-1]]).square().sum()))
        allowed = [i for i, point in enumerate(cloud) if point.square().sum() > 1e-3]
        indices.append(max(allowed, key=lambda i: nearest[i], default=0))
    return indices


def group(points, number, size):
    """Neighbourhoods (b, g, k, 3) about their centres, and the centres."""
    center = torch.stack([cloud[farthest_points(cloud, number)] for cloud in points])
    distance = (center[:, :, None] - points[:, None]).square().sum(-1)
    index = distance.argsort(dim=2, stable=True)[:, :, :size]
    members = torch.stack([cloud[i] for cloud, i in zip(points, index, strict=True)])
    return members - center[:, :, None], center


def embed(state, neighborhood):
    x = F.relu(batch_norm(state, "encoder.first_conv.1", linear(state, "encoder.first_conv.0", neighborhood)))
    x = linear(state, "encoder.first_conv.3", x)
    x = torch.cat([x.amax(2, keepdim=True).expand_as(x), x], dim=-1)
    x = F.relu(batch_norm(state, "encoder.second_conv.1", linear(state, "encoder.second_conv.0", x)))
    return linear(state, "encoder.second_conv.3", x).amax(2)


def positions(state, name, center, activation=F.gelu):
    return linear(state, f"{name}.2", activation(linear(state, f"{name}.0", center)))


def classify(state, pooled):
    x = pooled
    for place in (0, 4):
        x = F.relu(
            batch_norm(
                state, f"cls_head_finetune.{place + 1}", linear(state, f"cls_head_finetune.{place}", x)
            )
        )
    logits = linear(state, "cls_head_finetune.8", x)
    return {"pooled": pooled, "logits": logits, "loss": logits.square().mean()}


def patches(state, points, number, size):
    neighborhood, center = group(points, number, size)
    return {"neighborhood": neighborhood, "center": center, "tokens": embed(state, neighborhood)}


# ---- Point-MAE


def transformer(state, name, x, heads):
    q, k, v = linear(state, f"{name}.attn.qkv", layer_norm(state, f"{name}.norm1", x)).chunk(3, dim=-1)
    size, parts = q.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(size)
        parts.append(scores.softmax(-1) @ v[..., part])
    x = x + linear(state, f"{name}.attn.proj", torch.cat(parts, dim=-1))
    inner = F.gelu(linear(state, f"{name}.mlp.fc1", layer_norm(state, f"{name}.norm2", x)))
    return x + linear(state, f"{name}.mlp.fc2", inner)


def transformer_layers(state, prefix, x, position, heads):
    """Every block's output; the positions are added before each."""
    outputs = []
    for i in range(count(state, prefix)):
        x = transformer(state, f"{prefix}{i}", x + position, heads)
        outputs.append(x)
    return outputs


def with_class_token(state, arrays, activation):
    """Sequence and positions with the class token in front."""
    position = positions(state, "pos_embed", arrays["center"], activation)
    front = (len(position), -1, -1)
    return (
        torch.cat([state["cls_token"].expand(*front), arrays["tokens"]], dim=1),
        torch.cat([state["cls_pos"].expand(*front), position], dim=1),
    )


def point_mae(state, points, number, size, heads):
    arrays = patches(state, points, number, size)
    x, position = with_class_token(state, arrays, F.gelu)
    layers = transformer_layers(state, "blocks.blocks.", x, position, heads)
    normed = layer_norm(state, "norm", layers[-1])
    arrays |= {"block0": layers[0], "normed": normed}
    return arrays | classify(state, torch.cat([normed[:, 0], normed[:, 1:].amax(1)], dim=-1))


def chamfer(a, b):
    distance = (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)
    return (distance.amin(-1).mean(-1) + distance.amin(-2).mean(-1)).mean()


def select(values, mask):
    """The tokens (b, g, ...) where the mask is True, equally many of each cloud."""
    return torch.stack([value[where] for value, where in zip(values, mask, strict=True)])


def point_mae_pretraining(state, points, mask, number, size, heads):
    encoder = strip_prefix(state, "MAE_encoder.")
    arrays = patches(encoder, points, number, size)
    position = positions(encoder, "pos_embed", arrays["center"])
    x = select(arrays["tokens"], ~mask)
    last = transformer_layers(encoder, "blocks.blocks.", x, select(position, ~mask), heads)[-1]
    visible = layer_norm(encoder, "norm", last)
    position = positions(state, "decoder_pos_embed", arrays["center"])
    position = torch.cat([select(position, ~mask), select(position, mask)], dim=1)
    hidden = position.shape[1] - visible.shape[1]
    x = torch.cat([visible, state["mask_token"].expand(len(visible), hidden, -1)], dim=1)
    decoded = transformer_layers(state, "MAE_decoder.blocks.", x, position, heads)[-1]
    decoded = layer_norm(state, "MAE_decoder.norm", decoded[:, -hidden:])
    prediction = linear(state, "increase_dim.0", decoded).unflatten(-1, (size, 3))
    loss = chamfer(prediction, select(arrays["neighborhood"], mask))
    return arrays | {"visible_features": visible, "decoded": decoded, "prediction": prediction, "loss": loss}


def point_mae_parts(state, points, category, number, size, heads):
    arrays = patches(state, points, number, size)
    position = positions(state, "pos_embed", arrays["center"])
    layers = transformer_layers(state, "blocks.blocks.", arrays["tokens"], position, heads)
    thirds = [layers[len(layers) * i // 3 - 1] for i in (1, 2, 3)]
    features = torch.cat([layer_norm(state, "norm", layer) for layer in thirds], dim=-1)
    one_hot = F.one_hot(category, state["label_conv.0.weight"].shape[1]).to(points.dtype)
    label = F.leaky_relu(
        batch_norm(state, "label_conv.1", linear(state, "label_conv.0", one_hot)), negative_slope=0.2
    )
    distance, index = (points[:, :, None] - arrays["center"][:, None]).square().sum(-1).sort(dim=-1)
    weight = 1 / (distance[..., :3] + 1e-8)
    near = torch.stack(
        [cloud_features[i] for cloud_features, i in zip(features, index[..., :3], strict=True)]
    )
    interpolated = (near * (weight / weight.sum(-1, keepdim=True))[..., None]).sum(2)
    x = torch.cat([points, interpolated], dim=-1)
    for i in (0, 1):
        name = "propagation_0.mlp"
        x = F.relu(batch_norm(state, f"{name}_bns.{i}", linear(state, f"{name}_convs.{i}", x)))
    cloud = torch.cat([features.amax(1), features.mean(1), label], dim=-1)
    arrays |= {"label_feature": label, "propagated": x}
    x = torch.cat([x, cloud[:, None].expand(-1, x.shape[1], -1)], dim=-1)
    for i in (1, 2):
        x = F.relu(batch_norm(state, f"bns{i}", linear(state, f"convs{i}", x)))
    return arrays | {"log_prob": linear(state, "convs3", x).log_softmax(-1)}


# ---- Mamba


def mix_flipped(state, name, x):
    """Mamba3D's mixer: the second scan reads x and z with all their channels reversed; both are added."""
    xz = linear(state, f"{name}.in_proj", x)
    total = 0
    for suffix, order in (("", 1), ("_b", -1)):
        scan_input, gate = (xz if order == 1 else xz.flip(-1)).chunk(2, dim=-1)
        y = scan(state, name, suffix, scan_input) * F.silu(gate)
        total = total + (y if order == 1 else y.flip(-1))
    return linear(state, f"{name}.out_proj", total)


def local_step(state, name, x, center, neighbors):
    """The local step of a batch, with one spread for all clouds; the class token stays unchanged."""
    patch_features = x[:, 1:]
    index = (center[:, :, None] - center[:, None]).square().sum(-1).argsort(-1)[..., :neighbors]
    near = torch.stack([values[i] for values, i in zip(patch_features, index, strict=True)])
    relative = near - patch_features[:, :, None]
    relative = relative / (relative.std() + 1e-5)
    joined = torch.cat([relative, patch_features[:, :, None].expand_as(near)], dim=-1)
    joined = (
        state[f"{name}.lga.affine_alpha_feat"] * joined + state[f"{name}.lga.affine_beta_feat"]
    )  # (b, g, k, 2d)
    pooled = (joined * joined.softmax(2)).sum(2)
    pooled = linear(state, f"{name}.mlp.share_mlp", layer_norm(state, f"{name}.pre_norm_ft", pooled))
    return torch.cat([x[:, :1], F.silu(pooled)], dim=1)


def mamba3d(state, points, number, size, neighbors=4):
    arrays = patches(state, points, number, size)
    x, position = with_class_token(state, arrays, F.silu)
    for i in range(count(state, "blocks.blocks.")):
        name = f"blocks.blocks.{i}"
        x = x + position
        local = local_step(
            state, f"{name}.lfa", layer_norm(state, f"{name}.norm1", x), arrays["center"], neighbors
        )
        x = x + local
        mixed = mix_flipped(state, f"{name}.mixer", layer_norm(state, f"{name}.norm2", x))
        x = x + mixed
        if i == 0:
            arrays |= {"block0_lfa": local, "block0_mixer": mixed, "block0": x}
    normed = layer_norm(state, "norm", x)
    normed_patches = normed[:, 1:]
    pooled = torch.cat([normed[:, 0], normed_patches.amax(1) + normed_patches[0].mean(0)], dim=-1)
    return arrays | {"normed": normed} | classify(state, pooled)


def hilbert_index(cell, bits):
    """Place of a cell on Skilling's curve, one bit at a time."""
    axes = list(cell)
    for bit in reversed(range(1, bits)):
        top, low = 1 << bit, (1 << bit) - 1
        for i in range(3):
            if axes[i] & top:
                axes[0] ^= low
            else:
                swapped = (axes[0] ^ axes[i]) & low
                axes[0] ^= swapped
                axes[i] ^= swapped
    axes[1] ^= axes[0]
    axes[2] ^= axes[1]
    flips = 0
    for bit in reversed(range(1, bits)):
        if axes[2] & (1 << bit):
            flips ^= (1 << bit) - 1
    place = 0
    for bit in reversed(range(bits)):
        for axis in axes:
            place = 2 * place + (((axis ^ flips) >> bit) & 1)
    return place


def hilbert_order(center, swapped=False):
    """The order of a batch: the curve is as fine as its largest cloud requires."""
    cells = (center[..., [1, 0, 2]] if swapped else center).div(0.02).floor().long()
    cells = cells - cells.amin(1, keepdim=True)
    bits = int(cells.max()).bit_length()
    places = [[hilbert_index(cell, bits) for cell in cloud] for cloud in cells.tolist()]
    return torch.tensor(places).argsort(dim=1, stable=True)


def in_order(values, order):
    return torch.stack([cloud[i] for cloud, i in zip(values, order, strict=True)])


def mamba_layers(state, x):
    """Every layer's output, and the normed last."""
    outputs = []
    for i in range(count(state, "layers.")):
        inner = layer_norm(state, f"layers.{i}.norm", x)
        scan_input, gate = linear(state, f"layers.{i}.mixer.in_proj", inner).chunk(2, dim=-1)
        y = scan(state, f"layers.{i}.mixer", "", scan_input) * F.silu(gate)
        x = x + linear(state, f"layers.{i}.mixer.out_proj", y)
        outputs.append(x)
    return [*outputs, layer_norm(state, "norm_f", x)]


def point_mamba(state, points, number, size):
    arrays = patches(state, points, number, size)
    position = positions(state, "pos_embed", arrays["center"])
    embeddings, ordered_positions = [], []
    for k, swapped in ((1, False), (2, True)):
        order = hilbert_order(arrays["center"], swapped)
        arrays["order_hilbert_trans" if swapped else "order_hilbert"] = order
        tokens = in_order(arrays["tokens"], order)
        embeddings.append(tokens * state[f"OrderScale_gamma_{k}"] + state[f"OrderScale_beta_{k}"])
        ordered_positions.append(in_order(position, order))
    sequence, position = torch.cat(embeddings, dim=1), torch.cat(ordered_positions, dim=1)
    *layers, normed = mamba_layers(strip_prefix(state, "blocks."), sequence + position)
    arrays |= {"sequence_in": sequence, "position_in": position, "block0": layers[0], "normed": normed}
    pooled = normed.mean(1)
    if state["cls_head_finetune.0.weight"].shape[1] == 2 * pooled.shape[1]:
        pooled = torch.cat([pooled, normed.amax(1)], dim=-1)
    return arrays | classify(state, pooled)


def point_mamba_pretraining(state, points, mask, number, size, *, swapped=False):
    """``mask`` is in scan order, as the decoder's sequence is."""
    encoder, k = strip_prefix(state, "MAE_encoder."), 2 if swapped else 1
    arrays = patches(encoder, points, number, size)
    order = hilbert_order(arrays["center"], swapped)
    center, tokens = in_order(arrays["center"], order), in_order(arrays["tokens"], order)
    tokens = tokens * encoder[f"OrderScale_gamma_{k}"] + encoder[f"OrderScale_beta_{k}"]
    x = select(tokens + positions(encoder, "pos_embed", center), ~mask)
    visible = mamba_layers(strip_prefix(encoder, "blocks."), x)[-1]
    x = state["mask_token"].expand(*mask.shape, -1).clone()
    x = x.masked_scatter(~mask[..., None], visible) + positions(state, "decoder_pos_embed", center)
    decoded = select(mamba_layers(strip_prefix(state, "MAE_decoder.blocks."), x)[-1], mask)
    prediction = linear(state, "increase_dim.0", decoded).unflatten(-1, (size, 3))
    loss = chamfer(prediction, select(in_order(arrays["neighborhood"], order), mask))
    return arrays | {
        "order": order, "visible_features": visible, "decoded": decoded, "prediction": prediction, "loss": loss,
    }  # fmt: skip
