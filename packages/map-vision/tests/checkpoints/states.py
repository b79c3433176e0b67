"""Random checkpoints under the published names: 16 patches of 8 pixels, a few layers of width 32."""

import torch

WIDTH, PATCHES, PATCH, CLASSES = 32, 16, 8, 10
BOTH, FOUR = ("", "_b"), ("", "_b", "_c", "_c_b")


def random_state(shapes):
    """Weights that all have an effect: none is zero, and no norm is the identity."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        value = torch.randn(shape, generator=generator) / (fan_in**0.5 if len(shape) > 1 else 5)
        scales = name.endswith(".weight") and len(shape) == 1
        state[name] = value + 1 if scales or ".D" in name else value
    return state


def dense(name, outputs, inputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name, width, bias=True):
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def mixer(name, expand, suffixes):
    inner, rank = expand * WIDTH, WIDTH // 16
    shapes = {f"{name}.in_proj.weight": (2 * inner, WIDTH), f"{name}.out_proj.weight": (WIDTH, inner)}
    for suffix in suffixes:
        shapes |= {f"{name}.A{suffix}_log": (inner, 16), f"{name}.D{suffix}": (inner,)}
        shapes |= {f"{name}.conv1d{suffix}.weight": (inner, 1, 4), f"{name}.conv1d{suffix}.bias": (inner,)}
        shapes |= {f"{name}.x_proj{suffix}.weight": (rank + 32, inner)}
        shapes |= dense(f"{name}.dt_proj{suffix}", inner, rank)
    return shapes


def block(name, width, hidden):
    return (
        norm(f"{name}.norm1", width)
        | dense(f"{name}.attn.qkv", 3 * width, width)
        | dense(f"{name}.attn.proj", width, width)
        | norm(f"{name}.norm2", width)
        | dense(f"{name}.mlp.fc1", hidden, width)
        | dense(f"{name}.mlp.fc2", width, hidden)
    )


def patch_embed():
    return {"patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,)}


def head(inputs=WIDTH):
    return dense("head", CLASSES, inputs)


def mamba_layers(layers):
    shapes = {}
    for i in range(layers):
        shapes |= norm(f"layers.{i}.norm", WIDTH, bias=False) | mixer(f"layers.{i}.mixer", 2, BOTH)
    return shapes | norm("norm_f", WIDTH, bias=False)


def vit(*, last="norm", with_head=True):
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, PATCHES + 1, WIDTH)} | patch_embed()
    for i in range(2):
        shapes |= block(f"blocks.{i}", WIDTH, 4 * WIDTH)
    return random_state(shapes | norm(last, WIDTH) | (head() if with_head else {}))


def mae(width=24):
    shapes = {"mask_token": (1, 1, width), "decoder_pos_embed": (1, PATCHES + 1, width)}
    shapes |= dense("decoder_embed", width, WIDTH) | block("decoder_blocks.0", width, 4 * width)
    shapes |= norm("decoder_norm", width) | dense("decoder_pred", 3 * PATCH**2, width)
    return vit(with_head=False) | random_state(shapes)


def vim():
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, PATCHES + 1, WIDTH)} | patch_embed() | head()
    return random_state(shapes | mamba_layers(3))


def mambar():
    registers = {"cls_token": (1, 4, WIDTH), "pos_embed_cls": (1, 4, WIDTH), "pos_embed": (1, PATCHES, WIDTH)}
    neck = {"neck.weight": (WIDTH // 2, WIDTH), "norm_neck.weight": (2 * WIDTH,)}
    return random_state(registers | patch_embed() | neck | head(2 * WIDTH) | mamba_layers(3))


def arm():
    shapes = {"cls_token": (1, 1, WIDTH), "pos_embed": (1, PATCHES + 1, WIDTH)} | patch_embed() | head()
    hidden = 8 * WIDTH // 3
    for i in range(2):
        shapes |= norm(f"layers.{i}.norm1", WIDTH) | norm(f"layers.{i}.norm2", WIDTH)
        shapes |= mixer(f"layers.{i}.mixer", 1, FOUR)
        shapes |= dense(f"layers.{i}.mlp.w1", hidden, WIDTH) | dense(f"layers.{i}.mlp.w2", hidden, WIDTH)
        shapes |= dense(f"layers.{i}.mlp.w3", WIDTH, hidden)
    return random_state(shapes | norm("norm_f", WIDTH))


def authors(width=24):
    shapes = {"mask_token": (1, 1, width), "decoder_pos_embed_learned": (1, PATCHES, width)}
    for i in range(2):
        shapes |= block(f"blocks.{i}", WIDTH, 2 * WIDTH)
        name = f"decoder_blocks.{i}"
        shapes |= (
            norm(f"{name}.norm2_1", width) | norm(f"{name}.norm2_2", width) | norm(f"{name}.norm2", width)
        )
        shapes |= dense(f"{name}.attn2.q", width, width) | dense(f"{name}.attn2.kv", 2 * width, width)
        shapes |= dense(f"{name}.attn2.proj", width, width)
        shapes |= dense(f"{name}.mlp.fc1", 4 * width, width) | dense(f"{name}.mlp.fc2", width, 4 * width)
    shapes |= dense("decoder_embed", width, WIDTH) | norm("decoder_norm", width)
    shapes |= dense("ar_pred", 3 * PATCH**2, width)
    return _without_layers(mambar()) | random_state(shapes | mamba_layers(4))


def _without_layers(state):
    return {key: value for key, value in state.items() if not key.startswith("layers.")}
