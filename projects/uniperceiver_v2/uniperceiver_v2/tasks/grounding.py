"""Grounding: every proposal is compared with every phrase, to find what each phrase means.

Shapes: B images, N objects of an image at most, O proposals, T different phrases of the batch, K matched proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.datasets.phrases import load_phrases
from ..data.datasets.records import Records
from ..data.mappers.phrases import GroundingMapper
from ..data.samples import GroundingSample
from ..evaluation import GroundingEvaluator
from ..kinds import ConfiguredTask, TaskKind, TaskSettings, setting
from ..modeling.image_encoder import ImageEncoding, RegionTargets
from ..modeling.model import UniPerceiver
from ..ranks import mean_divisor, sum_over_ranks
from ..transfer import send
from .labelled_proposals import ImageSizes, LabelledProposals
from .task import Task, log_accuracy


@dataclass(frozen=True, kw_only=True)
class GroundingSettings(TaskSettings):
    """Of grounding. Images have detection's sizes; they are not cropped, and not mirrored where a phrase says left or
    right."""

    phrase_weight: float = setting(2.0, "of the loss over the phrases for each proposal", at_least=0)
    referent_weight: float = setting(2.0, "of the loss over the proposals for each phrase", at_least=0)
    alignment_weight: float = setting(5.0, "of the alignment loss", at_least=0)
    centre_weight: float = setting(0.0, "of the loss of the map of centres, see `REGION.FINE_DIM`", at_least=0)
    none: str = setting("none", "text of the candidate that is right where no phrase is true of a proposal")
    phrases_per_image: int = setting(16, "phrases drawn of an image in training, where it has as many", above=0)
    proposals_per_phrase: int = setting(10, "proposals that a prediction ranks for each phrase", above=0)


class GroundingTask(Task):
    """Phrase grounding, with a candidate "none" of which each proposal asks whether a phrase is likelier.

    The score of a phrase at a proposal is objectness × P(phrase | proposal), with P over the phrase and "none". So a
    score depends on no other phrase that is asked for, several proposals may have a phrase, a proposal several phrases,
    and a phrase that is true of nothing has low scores everywhere.

    Inputs: :class:`~uniperceiver_v2.data.samples.GroundingSample`. Predictions: "phrases", those of the input, and
    "instances" (pred_boxes, scores, pred_masks if masks are learned, and pred_classes, the place in "phrases") at the
    size that "height" and "width" give: for one phrase after the other its best proposals, best first.
    """

    settings: GroundingSettings

    def losses(self, model: UniPerceiver, inputs: Sequence[GroundingSample]) -> dict[str, Tensor]:
        images = model.preprocess(inputs)
        targets = RegionTargets.from_instances([x["instances"] for x in inputs], images)
        phrases = PhraseTargets.of(inputs, targets.valid.shape[1], images.tensor.device)
        # As label each object has its place in the batch: then it is known of each state which object it answers for.
        places = torch.arange(targets.valid.numel(), device=targets.valid.device)
        targets = replace(targets, labels=places.view_as(targets.valid))
        encoding, regions = model.image_encoder(images, targets)
        candidates, means = model.encode_candidates_and_means((self.settings.none, *phrases.texts))

        matches = regions.matches
        matched_proposals = model.decode_proposals(encoding)[matches.image, matches.query]
        at_matches = model.likelihood.of_directions(matched_proposals, candidates)
        place = matches.image, matches.target
        logits = at_matches.new_zeros(*targets.valid.shape, at_matches.shape[-1]).index_put(place, at_matches)
        answered = torch.zeros_like(targets.valid).index_put(place, torch.ones_like(matches.image, dtype=torch.bool))
        true, false = phrases.true & answered[..., None], phrases.false & answered[..., None]
        of_proposals = phrase_losses(logits[..., 1:], logits[..., 0], true, false) * answered
        of_phrases = referent_losses(logits[..., 1:], true, false)

        # Align before fuse, as in detection: every state that answers for an object.
        alignment_targets = self._alignment_targets(means, phrases)
        aligned = model.likelihood(model.image_encoder.fusion.semantics(regions.states), alignment_targets)
        owner = regions.labels
        of_states = phrase_losses(
            aligned[:, 1:], aligned[:, 0], phrases.true.flatten(0, 1)[owner], phrases.false.flatten(0, 1)[owner]
        )
        of_states = (of_states * regions.weights).sum()
        hits, asked = phrases_found(logits[..., 1:] - logits[..., :1], true, answered)
        objects, answering, hits, asked = sum_over_ranks(targets.valid.sum(), regions.weights.sum(), hits, asked)
        log_accuracy("phrase_accuracy", hits, asked)
        losses = {
            **regions.losses,
            "loss_phrase": self.settings.phrase_weight * of_proposals.sum() / mean_divisor(objects),
            "loss_referent": self.settings.referent_weight * of_phrases.sum() / mean_divisor(objects),
            "loss_alignment": self.settings.alignment_weight * of_states / mean_divisor(answering),
        }
        if self.settings.centre_weight:
            centres = model.image_encoder.centre_loss(
                regions, alignment_targets[1:], targets, phrases.true, phrases.asked
            )
            losses["loss_centre"] = self.settings.centre_weight * centres / mean_divisor(objects)
        return losses

    @staticmethod
    def _alignment_targets(means: Tensor, phrases: PhraseTargets) -> Tensor:
        """Mean tokens [1+T,d] of "none" and the phrases, less the mean over all phrases that all ranks ask for, so that
        they differ as much as they can."""
        asked = phrases.asked.sum(0).to(means.dtype)
        total, count = sum_over_ranks(asked @ means[1:], asked.sum().expand(means.shape[1]))
        return means - (total / count.clamp(min=1)).to(means.dtype)

    def loss_count(self, inputs: Sequence[GroundingSample]) -> int:
        return sum(len(x["instances"]) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: Sequence[GroundingSample]) -> list[dict]:
        images = model.preprocess(inputs)
        encoding, _ = model.image_encoder(images)
        found = self.find(model, encoding, ImageSizes.of(images), [x["phrases"] for x in inputs])
        results = []
        for pairs, item in zip(found, inputs, strict=True):
            size = item.get("height", pairs.image_size[0]), item.get("width", pairs.image_size[1])
            results.append({"phrases": tuple(item["phrases"]), "instances": pairs.instances(size)})
        return results

    def find(
        self, model: UniPerceiver, encoding: ImageEncoding, sizes: ImageSizes, phrases: Sequence[Sequence[str]]
    ) -> list[LabelledProposals]:
        """For each encoded image and each of its phrases the best proposals, best first. Labels are places in the
        image's phrases."""
        texts = list(dict.fromkeys(phrase for of_image in phrases for phrase in of_image))
        candidates = model.encode_candidates((self.settings.none, *texts))
        logits = model.likelihood.of_directions(model.decode_proposals(encoding), candidates)  # [B,O,1+T]
        likelier = (logits[..., 1:] - logits[..., :1]).sigmoid()
        scores = encoding.proposals.objectness.float().sigmoid().unsqueeze(-1) * likelier
        ranked = min(self.settings.proposals_per_phrase, scores.shape[1])
        results = []
        for index, of_image in enumerate(phrases):
            asked = torch.tensor([texts.index(x) for x in of_image], dtype=torch.int64, device=scores.device)
            best, proposal = scores[index, :, asked].topk(ranked, dim=0)  # [ranked, phrases of this image]
            labels = torch.arange(len(asked), device=scores.device).repeat_interleave(ranked)
            results.append(
                LabelledProposals.choose(
                    proposal.T.flatten(), labels, best.T.flatten(), encoding.proposals, index, sizes
                )
            )
        return results


@dataclass
class PhraseTargets:
    """The phrases of a batch.

    Attributes:
        texts: T of them, each once.
        asked: [B,T] bool, which phrases are asked for in an image.
        true: [B,N,T] bool, which of them an object is meant by. A text that an image has twice means what either does.
    """

    texts: tuple[str, ...]
    asked: Tensor
    true: Tensor

    @classmethod
    def of(cls, inputs: Sequence[GroundingSample], most_objects: int, device: torch.device) -> PhraseTargets:
        """Those of a batch whose images are padded to so many objects each."""
        texts = tuple(dict.fromkeys(phrase for x in inputs for phrase in x["phrases"]))
        place = {text: index for index, text in enumerate(texts)}
        asked = torch.zeros(len(inputs), len(texts), dtype=torch.bool)
        true = torch.zeros(len(inputs), most_objects, len(texts), dtype=torch.bool)
        for index, item in enumerate(inputs):
            for phrase, objects in zip(item["phrases"], item["phrase_objects"], strict=True):
                asked[index, place[phrase]] = True
                true[index, : len(objects), place[phrase]] |= objects.cpu()
        return cls(texts, send(asked, device), send(true, device))

    @property
    def false(self) -> Tensor:
        """[B,N,T] bool, phrases asked for in the image that do not mean the object. What is asked for in other images
        alone is neither true nor false of it: nobody has said."""
        return self.asked[:, None] & ~self.true


def phrase_losses(logits: Tensor, none: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Equation (7) over the phrases for each proposal, of which several may be right.

    Each right phrase is compared with "none" and the wrong ones, not with the other right ones; and "none" with the
    wrong ones, so that it divides right from wrong (the adaptive threshold of Zhou et al., AAAI 2021). Where no phrase
    is right, "none" is.

    Args:
        logits: [...,T] of phrases; none: [...], that of "none".
        true, false: [...,T] bool.
    Returns:
        [...], -log P(none) plus the mean of -log P over the right phrases, if there are any.
    """
    wrong = torch.cat((none[..., None], logits.masked_fill(~false, -torch.inf)), dim=-1).logsumexp(-1)
    right = torch.logaddexp(wrong[..., None], logits) - logits
    return wrong - none + (right * true).sum(-1) / true.sum(-1).clamp(min=1)


def referent_losses(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Equation (7) over the proposals for each phrase, the other way round: each right proposal is compared with those
    that are matched to other objects of the image, not with other right ones.

    Args:
        logits: [B,N,T]; true, false: the same in bool.
    Returns:
        [B,N], the mean over the phrases that mean an object; 0 where none does.
    """
    # No -inf: where no proposal is wrong, its sum would have no gradient but NaN.
    wrong = logits.masked_fill(~false, torch.finfo(logits.dtype).min / 2).logsumexp(1, keepdim=True)
    right = torch.logaddexp(wrong, logits) - logits
    return (right * true).sum(-1) / true.sum(-1).clamp(min=1)


def phrases_found(scores: Tensor, true: Tensor, answered: Tensor) -> tuple[Tensor, Tensor]:
    """Of how many phrases the best of the objects' proposals is right, and how many phrases mean an object at all.

    Args:
        scores: [B,N,T]; true: [B,N,T] bool; answered: [B,N] bool, which objects have a proposal.
    """
    best = scores.masked_fill(~answered[..., None], -torch.inf).argmax(1, keepdim=True)
    return true.gather(1, best).sum(), true.any(1).sum()


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, GroundingMapper]:
    records = [record for name in task.settings.datasets for record in load_phrases(name)]
    return records, GroundingMapper(cfg, task.name, is_train=True, count=task.settings.phrases_per_image)


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, GroundingMapper]:
    return load_phrases(dataset_name), GroundingMapper(cfg, task.name, is_train=False)


GROUNDING = TaskKind(
    name="grounding",
    settings=GroundingSettings,
    task=GroundingTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"grounding": GroundingEvaluator},
    columns=dict.fromkeys(("Acc@0.5", "R@5@0.5", "R@10@0.5", "N-acc", "T-acc"), 1),
)
