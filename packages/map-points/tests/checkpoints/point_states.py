"""Random checkpoints under the published names: a few layers of width 32, clouds of 8 patches of 4 points."""

import torch

WIDTH, CLASSES = 32, 10
CUT = {"number": 8, "size": 4}
OURS = {"num_patches": 8, "patch_size": 4}
POINTS = torch.randn(2, 48, 3, generator=torch.Generator().manual_seed(1))
POINTS = POINTS / POINTS.norm(dim=-1).amax(1)[:, None, None]
POINTS[:, 3] = torch.tensor([0.01, 0.02, -0.01])  # near the origin: no centre of a patch


def random_state(shapes):
    """Weights that all matter: none is zero, and norms do something."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        value = torch.randn(shape, generator=generator) / (fan_in**0.5 if len(shape) > 1 else 5)
        scales = (name.endswith(".weight") and len(shape) == 1) or "gamma" in name or "alpha" in name
        if name.endswith("running_var"):
            value = value.square() + 0.5
        state[name] = value + 1 if scales or ".D" in name else value
    return state


def dense(name, outputs, inputs, *, points=False, bias=True):
    """A linear layer, or one that is a convolution over points."""
    shape = (outputs, inputs, 1) if points else (outputs, inputs)
    return {f"{name}.weight": shape} | ({f"{name}.bias": (outputs,)} if bias else {})


def layer_norm(name, width=WIDTH):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name, width):
    running = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return layer_norm(name, width) | running | {f"{name}.num_batches_tracked": ()}


def position_mlp(name):
    return dense(f"{name}.0", 128, 3) | dense(f"{name}.2", WIDTH, 128)


def patches(hidden=16):
    return (
        dense("encoder.first_conv.0", hidden // 2, 3, points=True)
        | batch_norm("encoder.first_conv.1", hidden // 2)
        | dense("encoder.first_conv.3", hidden, hidden // 2, points=True)
        | dense("encoder.second_conv.0", 2 * hidden, 2 * hidden, points=True)
        | batch_norm("encoder.second_conv.1", 2 * hidden)
        | dense("encoder.second_conv.3", WIDTH, 2 * hidden, points=True)
        | position_mlp("pos_embed")
    )


def head(inputs, hidden=24):
    name = "cls_head_finetune"
    return (
        dense(f"{name}.0", hidden, inputs)
        | batch_norm(f"{name}.1", hidden)
        | dense(f"{name}.4", hidden, hidden)
        | batch_norm(f"{name}.5", hidden)
        | dense(f"{name}.8", CLASSES, hidden)
    )


def class_token():
    return {"cls_token": (1, 1, WIDTH), "cls_pos": (1, 1, WIDTH)}


def attention_block(name):
    return (
        layer_norm(f"{name}.norm1")
        | layer_norm(f"{name}.norm2")
        | dense(f"{name}.attn.qkv", 3 * WIDTH, WIDTH, bias=False)
        | dense(f"{name}.attn.proj", WIDTH, WIDTH)
        | dense(f"{name}.mlp.fc1", 4 * WIDTH, WIDTH)
        | dense(f"{name}.mlp.fc2", WIDTH, 4 * WIDTH)
    )


def blocks(prefix, make, number):
    shapes = {}
    for i in range(number):
        shapes |= make(f"{prefix}.{i}")
    return shapes


def mixer(name, suffixes):
    inner, rank = 2 * WIDTH, WIDTH // 16
    shapes = dense(f"{name}.in_proj", 2 * inner, WIDTH, bias=False)
    shapes |= dense(f"{name}.out_proj", WIDTH, inner, bias=False)
    for suffix in suffixes:
        shapes |= {f"{name}.A{suffix}_log": (inner, 16), f"{name}.D{suffix}": (inner,)}
        shapes |= {f"{name}.conv1d{suffix}.weight": (inner, 1, 4), f"{name}.conv1d{suffix}.bias": (inner,)}
        shapes |= dense(f"{name}.x_proj{suffix}", rank + 32, inner, bias=False)
        shapes |= dense(f"{name}.dt_proj{suffix}", inner, rank)
    return shapes


def local_block(name):
    affine = {f"{name}.lfa.lga.affine_{part}_feat": (1, 1, 1, 2 * WIDTH) for part in ("alpha", "beta")}
    return (
        layer_norm(f"{name}.norm1")
        | layer_norm(f"{name}.norm2")
        | affine
        | layer_norm(f"{name}.lfa.pre_norm_ft", 2 * WIDTH)
        | dense(f"{name}.lfa.mlp.share_mlp", WIDTH, 2 * WIDTH, points=True)
        | mixer(f"{name}.mixer", ("", "_b"))
    )


def scan_block(name):
    return layer_norm(f"{name}.norm") | mixer(f"{name}.mixer", ("",))


def transformer(number=2):
    return patches() | blocks("blocks.blocks", attention_block, number) | layer_norm("norm")


def inside(shapes):
    return {f"MAE_encoder.{name}": shape for name, shape in shapes.items()}


def decoder():
    """What every pretraining file has beside encoder and decoder blocks."""
    prediction = dense("increase_dim.0", 3 * CUT["size"], WIDTH, points=True)
    return {"mask_token": (1, 1, WIDTH)} | position_mlp("decoder_pos_embed") | prediction


def point_mae():
    return random_state(transformer() | class_token() | head(2 * WIDTH))


def point_mae_pretraining():
    shapes = blocks("MAE_decoder.blocks", attention_block, 2) | layer_norm("MAE_decoder.norm")
    return random_state(inside(transformer()) | decoder() | shapes)


def point_mae_parts():
    width, hidden, first = 3 * WIDTH, 16, 40
    shapes = dense("label_conv.0", 64, 16, points=True, bias=False) | batch_norm("label_conv.1", 64)
    for i, (inputs, outputs) in enumerate([(width + 3, first), (first, hidden)]):
        shapes |= dense(f"propagation_0.mlp_convs.{i}", outputs, inputs, points=True)
        shapes |= batch_norm(f"propagation_0.mlp_bns.{i}", outputs)
    joined = hidden + 2 * width + 64
    for i, (inputs, outputs) in enumerate([(joined, hidden // 2), (hidden // 2, hidden // 4)], start=1):
        shapes |= dense(f"convs{i}", outputs, inputs, points=True) | batch_norm(f"bns{i}", outputs)
    return random_state(transformer(3) | shapes | dense("convs3", 50, hidden // 4, points=True))


def mamba3d():
    shapes = patches() | blocks("blocks.blocks", local_block, 2) | layer_norm("norm")
    return random_state(shapes | class_token() | head(2 * WIDTH))


def scans():
    orders = {f"OrderScale_{part}_{k}": (WIDTH,) for part in ("gamma", "beta") for k in (1, 2)}
    return orders | patches() | blocks("blocks.layers", scan_block, 2) | layer_norm("blocks.norm_f")


def point_mamba(pooled=1):
    return random_state(scans() | head(pooled * WIDTH))


def point_mamba_pretraining():
    shapes = blocks("MAE_decoder.blocks.layers", scan_block, 1) | layer_norm("MAE_decoder.blocks.norm_f")
    return random_state(inside(scans()) | decoder() | shapes)
