"""Names of a Mamba mixer's parameters, forward and backward."""

DIRECTIONS = (
    (r"(.*\.mixer\.)(A_log|D$|conv1d\.|x_proj\.|dt_proj\.)", r"\1scan_forward.\2"),
    (r"(.*\.mixer\.)A_b_log", r"\1scan_backward.A_log"),
    (r"(.*\.mixer\.)D_b$", r"\1scan_backward.D"),
    (r"(.*\.mixer\.)(conv1d|x_proj|dt_proj)_b\.", r"\1scan_backward.\2."),
)


def mixer_keys(suffix: str = "") -> tuple[str, ...]:
    """Patterns of the keys of one direction, below ``mixer.``; those of the second have a suffix."""
    return (
        f"mixer.A{suffix}_log",
        f"mixer.D{suffix}",
        *(f"mixer.{layer}{suffix}.{part}" for layer in ("conv1d", "dt_proj") for part in ("weight", "bias")),
        f"mixer.x_proj{suffix}.weight",
    )


PROJECTIONS = ("mixer.in_proj.weight", "mixer.out_proj.weight")
