"""Evaluation of classifiers by named protocols that are never mixed."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

import map_core.tasks.evaluation
from map_core.errors import UserError
from map_core.ranges import check, refuse_without_effect
from map_core.tasks.domain import Logits, Samples
from map_core.tasks.evaluation import Collate, Gather, choose_device, collect
from map_points.data import CloudSamples

Protocol = Literal["no_vote", "vote_10", "best_of_299"]
PROTOCOLS = {
    "no_vote": "weights as given, farthest points of each cloud, no vote",
    "vote_10": "one round of 10 votes: mean logits over random points, scaled and shifted",
    "best_of_299": "the best of 299 rounds of 10 votes, chosen by accuracy on the evaluated clouds themselves: "
    "it selects on the test split, as the literature's voted numbers do",
}
VOTES = 10
ROUNDS = 299


@dataclass
class EvaluationConfig(map_core.tasks.evaluation.EvaluationConfig):
    """How clouds are run through a model.

    Args:
        protocol: no_vote; vote_10, one round of 10 augmented votes; best_of_299, the literature's maximum over
            299 such rounds, which selects on the test split.
        seed: Seed of the votes.
    """

    batch_size: int = 64
    workers: int = 0
    protocol: Protocol = "no_vote"
    seed: int = 0

    def validate(self) -> None:
        super().validate()
        check("evaluation", self, seeds=("seed",))
        if self.protocol == "no_vote":
            refuse_without_effect("evaluation", self, "seed", because="evaluation.protocol no_vote")

    def describe(self) -> str:
        """The protocol in words."""
        return f"{self.protocol}: {PROTOCOLS[self.protocol]}"


def voted_logits(
    model: nn.Module,
    samples: Samples,
    config: EvaluationConfig,
    *,
    collate: Collate,
    title: str,
    labelled: bool = True,
    gather: Gather = collect,
) -> Logits:
    """Logits and labels under the configured protocol: plain, of one round of votes, or of the best round.

    ``gather`` collects logits and labels of each pass; ``labelled`` says whether the samples have labels.

    Raises:
        UserError: the best round is asked for, but there are no labels to choose it by.
    """
    assert isinstance(samples, CloudSamples)
    device = choose_device(config.device)
    model = model.to(device).eval()

    def vote(clouds: CloudSamples, number: int, title: str) -> Logits:
        return gather(
            model, clouds, config, device, collate=collate, seed=config.seed, pass_number=number, title=title
        )

    if config.protocol == "no_vote":
        return vote(samples, 0, title)
    augmented = replace(samples.config, augmentation="scale_translate", channel_dropout=0.0)
    voting = CloudSamples(samples.clouds, augmented, training=True)

    def one_round(number: int) -> Logits:
        votes = [
            vote(voting, number * VOTES + i, f"round {number + 1}, vote {i + 1}/{VOTES}")
            for i in range(VOTES)
        ]
        labels = votes[0][1]  # the same in every vote
        return torch.stack([logits for logits, _ in votes]).sum(dim=0) / VOTES, labels

    if config.protocol == "vote_10":
        return one_round(0)
    if not labelled:
        raise UserError(
            "evaluation.protocol 'best_of_299' chooses a round by labels, which clouds to predict lack"
        )
    rounds = (one_round(number) for number in range(ROUNDS))
    return max(rounds, key=lambda result: int((result[0].argmax(dim=1) == result[1]).sum()))
