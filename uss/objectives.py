"""What the self-supervised stages minimise: swapped prediction, deep-to-shallow, pixel-to-pixel.

Rows of every batched output are ordered view by view: row ``v * batch + b`` belongs to view ``v``
of image ``b``. The first two views are the large crops; their Sinkhorn assignments are the targets
of all others (PASS, section 3.2; SwAV for the assignments and the queue).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from core import config as core_config
from core import distributed
from core.errors import UserError
from core.nn.layers import l2_normalise
from core.pipeline.stage import Stage
from core.runtime import jt, nn
from core.training.loop import Task
from core.training.optim import LarcSGD
from uss.config import Assignment, Config

Var = Any

ASSIGNED_VIEWS = 2


def sinkhorn(logits: Var, epsilon: float, iterations: int) -> Var:
    """Soft assignment of rows to prototypes in which every prototype gets the same total weight.

    Args:
        logits: (B, P) float32 scores of this process's rows, bounded (cosines): exp(logits /
            epsilon) must not overflow.
        epsilon: smaller = harder assignments.
        iterations: rounds of row and column normalisation; 0 leaves the softmax over everything.

    Returns:
        (B, P) float32 without gradient; after at least one iteration each row sums to 1. Totals are
        taken over all processes, which must hold equally many rows.
    """
    total_of = distributed.all_reduce_sum
    with jt.no_grad():
        weights = jt.exp(logits / epsilon)  # (B, P): prototypes are the columns here
        rows = logits.shape[0] * distributed.world_size()
        weights = weights / total_of(weights.sum().reshape(1, 1))
        for _ in range(iterations):
            weights = weights / (total_of(weights.sum(0, keepdims=True)) * logits.shape[1])
            weights = weights / (weights.sum(1, keepdims=True) * rows)
        return (weights * rows).stop_grad()


class Queue:
    """Earlier embeddings of both assigned views, which join the rows that Sinkhorn-Knopp balances.

    A slot of zeros is filled batch by batch, newest first. It takes part once its last row is
    filled; when one slot has done so, the other does too for the rest of the epoch, whatever it
    holds (behaviour of the reference).
    """

    def __init__(self, rows: np.ndarray) -> None:
        """``rows``: (2, length, width) float32, this process's share; zeros mean empty."""
        self._slots = [jt.array(rows[slot]).stop_grad() for slot in range(ASSIGNED_VIEWS)]
        # Kept on the host, so that asking "is the last row filled?" costs no synchronisation.
        self._filled = np.any(rows != 0, axis=2)
        self.in_use = False

    @staticmethod
    def empty(length: int, width: int, global_batch: int) -> Queue:
        """A queue of ``length`` rows over all processes, cut to a multiple of ``global_batch``."""
        share = length // global_batch * global_batch // distributed.world_size()
        return Queue(np.zeros((ASSIGNED_VIEWS, share, width), np.float32))

    @staticmethod
    def restored(rows: np.ndarray) -> Queue:
        """Inverse of :meth:`numpy` on any number of processes that divides the length."""
        return Queue(np.ascontiguousarray(rows[:, distributed.rank() :: distributed.world_size()]))

    def start_epoch(self) -> None:
        """Ask anew whether the queue is filled."""
        self.in_use = False

    def extend(self, slot: int, logits: Var, prototypes: Var) -> Var:
        """``logits`` (B, P) with the slot's own before them, (length + B, P); unchanged while not
        in use.
        """
        if not (self.in_use or self._filled[slot, -1]):
            return logits
        self.in_use = True
        earlier = nn.matmul_transpose(self._slots[slot], prototypes)
        return jt.concat([earlier, logits], 0)

    def push(self, slot: int, embedding: Var) -> None:
        """Put ``embedding`` (B, width) at the front; the oldest B rows leave."""
        batch = embedding.shape[0]
        rows = jt.concat([embedding.detach(), self._slots[slot][:-batch]], 0)
        self._slots[slot] = rows.stop_grad()
        self._filled[slot] = np.concatenate([np.ones(batch, bool), self._filled[slot, :-batch]])

    def numpy(self) -> np.ndarray:
        """(2, length over all processes, width) float32, newest first; the processes' rows take
        turns.
        """
        own = np.stack([slot.numpy() for slot in self._slots])
        world = distributed.world_size()
        if world == 1:
            return own
        slots, length, width = own.shape
        everyone = np.zeros((slots, length, world, width), np.float32)
        everyone[:, :, distributed.rank()] = own
        gathered = distributed.all_reduce_sum(jt.array(everyone)).numpy()
        return gathered.reshape(slots, length * world, width)


def assignments(
    logits: Var,
    embedding: Var,
    prototypes: Var,
    batch: int,
    settings: Assignment,
    queue: Queue | None = None,
) -> list[Var]:
    """Targets of the two assigned views, [(batch, P), (batch, P)] without gradient.

    Their embeddings enter the queue after it was used.

    Args:
        logits: (>= 2 * batch, P) float32, view by view.
        embedding: (>= 2 * batch, width) unit rows in the same order.
        prototypes: (P, width) unit rows.
        batch: images of this process.
        queue: None while there is none.
    """
    targets = []
    with jt.no_grad():
        for slot in range(ASSIGNED_VIEWS):
            rows = slice(slot * batch, (slot + 1) * batch)
            scores = logits[rows].detach()
            if queue is not None:
                scores = queue.extend(slot, scores, prototypes.detach())
                queue.push(slot, embedding[rows])
            target = sinkhorn(scores, settings.epsilon, settings.sinkhorn_iterations)
            target = target[scores.shape[0] - batch :].stop_grad()
            if distributed.world_size() > 1:
                # The slots do not depend on each other; all processes must add up the same one at a
                # time.
                target.sync()
            targets.append(target)
    return targets


def swapped_loss(logits: Var, targets: Sequence[Var], temperature: float) -> Var:
    """Image-to-image term: each view predicts the assignments of the other views.

    Args:
        logits: (views * B, P) float32, the assigned views first.
        targets: from :func:`assignments`.

    Returns:
        (1,) float32: the mean cross entropy over all pairs of an assigned and another view.
    """
    batch = targets[0].shape[0]
    views = logits.shape[0] // batch
    first, second = targets
    # A cross entropy is linear in its target: each view is compared once, with the sum of its
    # targets.
    wanted = jt.concat([second, first] + [first + second] * (views - ASSIGNED_VIEWS), 0)
    pairs = batch * ASSIGNED_VIEWS * (views - 1)
    return -(wanted * _log_softmax(logits / temperature)).sum() / pairs


def deep_to_shallow_loss(shallow_logits: Var, targets: Sequence[Var], temperature: float) -> Var:
    """A shallow stage's (2 * B, P) logits predict the deep assignments of the *other* view: (1,)
    float32.
    """
    first, second = targets
    wanted = jt.concat([second, first], 0)
    return -(wanted * _log_softmax(shallow_logits / temperature)).sum() / wanted.shape[0]


def pixel_loss(predicted: Var, projected: Var) -> Var:
    """Negative cosine of corresponding pixels of the two views, -1 (best) to 1: (1,) float32.

    Args:
        predicted: (2 * B, d, h, w) predictor output at the lattice points, view 0 before view 1.
        projected: the same shape before the predictor; gets no gradient.
    """
    batch = predicted.shape[0] // 2
    target = projected.detach()
    other = jt.concat([target[batch:], target[:batch]], 0)
    return -(l2_normalise(predicted, 1) * l2_normalise(other, 1)).sum(1).mean()


def weighted_total(image: Var, shallow: Sequence[Var], pixel: Var, weights: Sequence[float]) -> Var:
    """(w0 * image + w1 * shallow[0] + ...) / sum of weights + pixel; one weight per term, by
    position.

    Raises:
        ValueError: the number of weights is not one more than the number of shallow terms.
    """
    if len(weights) != 1 + len(shallow):
        raise ValueError(f"{1 + len(shallow)} loss weights expected, got {len(weights)}")
    total = image * (weights[0] / sum(weights))
    for weight, term in zip(weights[1:], shallow):
        total = total + term * (weight / sum(weights))
    return total + pixel


def _log_softmax(x: Var) -> Var:
    """Logarithm of the softmax over axis 1 of (N, K), exact where probabilities underflow."""
    x = x - x.max(1, keepdims=True).stop_grad()
    return x - jt.log(jt.exp(x).sum(1, keepdims=True))


def check(stage: Stage, config: Config, images: int) -> None:
    """Stop at once, and not after days of training, where a self-supervised stage or the clustering
    after it could not work.

    Raises:
        UserError: names the setting to change.
    """
    section, name = getattr(config, stage.section), stage.section
    core_config.require_positive({"num_classes": config.num_classes})
    core_config.check(config.heads, "heads")
    core_config.check(config.assignment, "assignment")
    if section.queue_length and section.queue_length < section.batch_size:
        raise UserError(
            f"{name}.queue_length is {section.queue_length}, shorter than one batch of "
            f"{section.batch_size}; use --set {name}.queue_length=0 for none, or at least the "
            f"batch size"
        )
    if images < config.num_classes:
        raise UserError(
            f"{name}: {images} training images, fewer than the {config.num_classes} clusters that "
            f"they are to form; add images or use --set num_classes=..."
        )


class PrototypeTask(Task):
    """The part of a training task that has to do with prototypes and the queue of embeddings.

    Args:
        model: the network.
        parameters: what of it learns, by name.
        section: the stage's settings: ``momentum``, ``weight_decay``, ``larc``, ``queue_length``,
            ``queue_start_epoch``, ``batch_size``, ``freeze_prototypes_steps``.
        feat_dim: channels of an embedding.
    """

    def __init__(
        self, model: Any, parameters: Mapping[str, Var], section: Any, feat_dim: int
    ) -> None:
        optimizer = LarcSGD(parameters, section.momentum, section.weight_decay, larc=section.larc)
        super().__init__(model, optimizer)
        self._section, self._feat_dim = section, feat_dim
        self.queue: Queue | None = None

    def start_epoch(self, epoch: int) -> None:
        """Make the queue when its time has come, and ask anew whether it is filled."""
        section = self._section
        if self.queue is None and section.queue_length and epoch >= section.queue_start_epoch:
            self.queue = Queue.empty(section.queue_length, self._feat_dim, section.batch_size)
        if self.queue is not None:
            self.queue.start_epoch()

    def frozen(self, step: int) -> Collection[str]:
        """The prototypes stand still at first: embeddings that mean nothing yet would move them."""
        return ("prototypes.weight",) if step < self._section.freeze_prototypes_steps else ()

    def state(self) -> dict[str, Any]:
        """The queue of all processes, or None, and whether it takes part in this epoch."""
        if self.queue is None:
            return {"queue": None, "queue_in_use": False}
        return {"queue": self.queue.numpy(), "queue_in_use": self.queue.in_use}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        self.queue = None
        if state["queue"] is not None:
            self.queue = Queue.restored(state["queue"])
            self.queue.in_use = state["queue_in_use"]
