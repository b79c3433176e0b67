"""Training without a GPU: `--launcher pytorch --gpus N` starts N processes of gloo; AdamW without layer decay.

A config that builds on this sets `optim_wrapper.optimizer.lr` and `env_cfg.dist_cfg.backend="gloo"`.
"""

runner_type = "CpuProcessesRunner"
randomness = dict(seed=0)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="HybridLayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(decay_rate=1.0),
    optimizer=dict(type="AdamW", betas=(0.9, 0.999), weight_decay=0.05),
)
