"""A loss that learns from teachers beside the labels.

In: what the student and each teacher have computed of a batch, up to their heads. Out: the summed loss

    (1 − α) · CE(labels) + α · T² · KL(p ‖ q)

of each scored token: p is the mean of the teachers' probabilities at temperature T, q the student's at T.

Source: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2. At
temperature T the gradients of the second term shrink with 1/T², so it is multiplied by T², and the weights of the two
terms mean about the same at each T. qlabs-eng/slowrun (unlimited/train.py), which trains on little text, has the same
loss with one teacher.

As in `chunked_loss`, the logits exist for a part of the positions at a time, the teachers' for an even smaller one.

Legend: N scored positions, C width, V rows of the student's head, V_t of a teacher's, R rows of a chunk.
"""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..model.chunked_loss import (
    IGNORE_INDEX,
    HeadProducts,
    aligned,
    cpu_rows_per_softmax,
    default_rows_per_chunk,
    product_dtype,
    softmax_,
    sum_over_chunks,
)
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..model.unused_tokens import UnusedTokens
from ..runtime import distributed

# Positions whose logits of all teachers are held at once; 128 x 50,257 in bf16 are 13 MB for each.
_TEACHER_ROWS = {"cpu": 128}
_TEACHER_ROWS_ELSEWHERE = 512

# What a batch has for the loss, and a teacher does not need.
_OF_THE_LOSS = ("labels", "shift_labels", "label_smoothing", "num_items_in_batch", "return_logits", "logits_to_keep")


class TeacherOutput(NamedTuple):
    """What a teacher has computed of a batch.

    Attributes:
        hidden_states: `[N, C_t]`, the last ones.
        weight: `[V_t, C_t]`, its head, in the order of the student's rows. Of the tokens that the student's last row
            stands for, each has a row of its own at the end, or all have one.
        num_rows: how many of the rows stand for tokens; what comes after them is left out.
        copies_of_last_row: number of tokens that the last of those stands for.
    """

    hidden_states: Tensor
    weight: Tensor
    num_rows: int
    copies_of_last_row: int = 1


def chunked_distillation(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    teachers: Sequence[TeacherOutput],
    *,
    alpha: float,
    temperature: float,
    num_padding_rows: int = 0,
    copies_of_last_row: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sum of the token losses, from the labels and from teachers.

    Args:
        hidden_states: `[..., C]`, the student's last ones.
        weight: `[V, C]`, its head.
        labels: `[...]`, int64 ids of rows of the head; −100 is not scored.
        teachers: at least one.
        alpha: weight of the teachers' term, in [0, 1].
        temperature: that all logits of the teachers' term are divided by.
        num_padding_rows, copies_of_last_row: as for `chunked_cross_entropy`.

    Returns:
        Two scalars in nats, at least fp32: the sum to be minimised, differentiable once, and the sum of the plain
        cross-entropies, without a gradient.
    """
    device = weight.device
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1]).to(device)
    labels = labels.reshape(-1).to(device)
    teachers = [each._replace(hidden_states=each.hidden_states.flatten(0, -2)) for each in teachers]
    scored = labels != IGNORE_INDEX
    if device.type == "cpu" and not bool(scored.all()):  # elsewhere the host would have to wait for their number
        hidden_states, labels = hidden_states[scored], labels[scored]
        teachers = [each._replace(hidden_states=each.hidden_states[scored]) for each in teachers]
    dtype = product_dtype(hidden_states, device.type)
    rows = default_rows_per_chunk(device.type, dtype)
    student = _Student(weight.shape[0] - num_padding_rows, copies_of_last_row, alpha, temperature)
    chunks = _DistilledChunks(labels, teachers, student, dtype)
    loss = sum_over_chunks(hidden_states, weight, chunks, rows, dtype)
    return loss, chunks.cross_entropy


class _Student(NamedTuple):
    """What the loss is made of, beside numbers that depend on the batch."""

    num_rows: int  # of the head, that stand for tokens
    copies_of_last_row: int
    alpha: float
    temperature: float


class _DistilledChunks:
    """The loss of a chunk of the student's logits, and its gradient; a `ChunkLoss`.

    Attributes:
        cross_entropy: sum of the plain cross-entropies so far, a scalar.
    """

    def __init__(self, labels: Tensor, teachers: Sequence[TeacherOutput], student: _Student, dtype: torch.dtype):
        self._labels, self._student = labels, student
        # those with a row for each token first: the mean has as many columns as the widest
        self._teachers = sorted(teachers, key=lambda teacher: -teacher.num_rows)
        self._products = [HeadProducts(aligned(teacher.weight.to(dtype))) for teacher in self._teachers]
        self._dtype, self._loss_dtype = dtype, torch.promote_types(dtype, torch.float32)
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._on_cpu = labels.device.type == "cpu"
        self.cross_entropy = torch.zeros((), dtype=self._loss_dtype, device=labels.device)

    def __call__(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Loss of the rows with logits `[R, V]`, and its gradient, written over them."""
        loss = torch.zeros_like(self.cross_entropy)
        labels = self._labels[rows]
        size = _TEACHER_ROWS.get(logits.device.type, _TEACHER_ROWS_ELSEWHERE)
        for first in range(0, len(labels), size):
            part = slice(first, first + size)
            of_teachers = self._teacher_logits(slice(rows.start + first, rows.start + first + len(labels[part])))
            block_rows = cpu_rows_per_softmax(logits) if self._on_cpu else size
            blocks = zip(*(x.split(block_rows) for x in (logits[part], labels[part], *of_teachers)), strict=True)
            for block, block_labels, *teacher_blocks in blocks:
                loss += self._block_loss(block, block_labels, teacher_blocks)
        return loss, logits

    def _teacher_logits(self, rows: slice) -> list[Tensor]:
        """At the temperature, `[R, V_t]` of each; dividing `[R, C_t]` takes less than dividing them."""
        scale = 1.0 / self._student.temperature
        chunks = [
            (teacher.hidden_states[rows].to(self._loss_dtype) * scale).to(self._dtype) for teacher in self._teachers
        ]
        return [products.logits(chunk) for products, chunk in zip(self._products, chunks, strict=True)]

    def _block_loss(self, block: Tensor, labels: Tensor, teacher_logits: Sequence[Tensor]) -> Tensor:
        """Loss of a few rows, whose gradient is written over their logits `[R, V]`."""
        num_rows, copies, alpha, temperature = self._student
        negative_entropy, teacher = self._teacher_probabilities(teacher_logits)
        scored = labels != IGNORE_INDEX
        ids = torch.where(scored, labels, 0).unsqueeze(1)  # [R, 1]
        logits = self._wide(block, "student")
        target_logits = logits.gather(1, ids).squeeze(1)
        logits[:, num_rows:] = -math.inf
        soft = logits
        if temperature != 1.0:
            soft = torch.mul(logits, 1.0 / temperature, out=self._buffer("soft", logits))
        for values in (logits,) if soft is logits else (logits, soft):
            if copies > 1:
                values[:, num_rows - 1] += math.log(copies)
        # two passes in the cache; as a batch of products of vectors it takes five times as long on a CPU
        products = torch.mul(teacher, soft[:, :num_rows], out=self._buffer("work", teacher))
        teacher_on_student = products.sum(dim=1)
        log_normalizer = softmax_(logits, need_softmax=True)
        soft_log_normalizer = log_normalizer if soft is logits else softmax_(soft, need_softmax=True)
        cross_entropy = torch.where(scored, log_normalizer - target_logits, 0.0).sum()
        divergence = torch.where(scored, negative_entropy - teacher_on_student + soft_log_normalizer, 0.0).sum()
        # d loss / d logits = (1 − α) (softmax − target) + α T (softmax at T − teacher)
        grad = logits
        if soft is not logits:
            grad.mul_(1.0 - alpha).add_(soft, alpha=alpha * temperature)
        grad[:, :num_rows].sub_(teacher, alpha=alpha * temperature)
        grad.scatter_add_(1, ids, torch.full_like(ids, alpha - 1.0, dtype=grad.dtype))
        if not self._on_cpu:  # where all rows are scored
            grad *= scored.unsqueeze(1)
        if block.dtype != grad.dtype:  # or they are the same memory
            block.copy_(grad)
        self.cross_entropy += cross_entropy
        return (1.0 - alpha) * cross_entropy + alpha * temperature**2 * divergence

    def _teacher_probabilities(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The mean over the teachers: Σ p log p over all tokens, `[R]`, and p of the student's rows, `[R, V]`.

        Where the last row stands for several tokens, its p is their sum, and the first result has an addition that
        the logarithm of their number in the student's logits takes away again.
        """
        num_rows, copies, *_ = self._student
        negative_entropy, mean = self._of_one(logits[0]) if len(logits) == 1 else self._of_several(logits)
        if mean.shape[1] > num_rows:
            mean[:, num_rows - 1] = mean[:, num_rows - 1 :].sum(dim=1)
            mean = mean[:, :num_rows]
            negative_entropy += mean[:, -1] * math.log(copies)
        return negative_entropy, mean

    def _of_one(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Σ p log p and p of a single teacher; its logits are log p already, but for a constant."""
        logits = self._teacher_values(0, block)
        probabilities = self._buffer("mean", logits).copy_(logits)
        log_normalizer = softmax_(probabilities, need_softmax=True)
        return logits.mul_(probabilities).sum(dim=1) - log_normalizer, probabilities

    def _of_several(self, blocks: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The same of the mean of several."""
        num_rows = self._student.num_rows
        mean = self._buffer("mean", blocks[0][:, : self._teachers[0].num_rows])
        for number, (teacher, block) in enumerate(zip(self._teachers, blocks, strict=True)):
            values = self._teacher_values(number, block)
            self._softmax_(values)
            if number == 0:
                mean.copy_(values)
            elif values.shape == mean.shape:
                mean += values
            else:  # one probability for all tokens that have their own columns in the mean
                mean[:, : num_rows - 1] += values[:, :-1]
                mean[:, num_rows - 1 :] += values[:, -1:] / teacher.copies_of_last_row
        mean /= len(blocks)
        # 0 log 0 is 0
        logarithms = torch.clamp(mean, min=torch.finfo(mean.dtype).tiny, out=self._buffer("work", mean)).log_()
        return logarithms.mul_(mean).sum(dim=1), mean

    def _teacher_values(self, number: int, block: Tensor) -> Tensor:
        """Logits of a teacher `[R, V_t]` in the type of the loss, those for several tokens with their logarithm."""
        teacher = self._teachers[number]
        values = self._wide(block[:, : teacher.num_rows], "work")
        if teacher.copies_of_last_row > 1:
            values[:, -1] += math.log(teacher.copies_of_last_row)
        return values

    def _softmax_(self, logits: Tensor) -> None:
        if self._on_cpu:
            torch.softmax(logits, dim=1, out=logits)  # see `softmax_`, which also returns the normalizer
        else:
            softmax_(logits, need_softmax=True)

    def _wide(self, block: Tensor, name: str) -> Tensor:
        """The same numbers in the type of the loss: themselves, or in a buffer."""
        return block if block.dtype == self._loss_dtype else self._buffer(name, block).copy_(block)

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        """Memory of the same shape in the type of the loss, used again: on a CPU it stays in the cache."""
        key = name, like.shape[1]
        if key not in self._buffers:
            self._buffers[key] = torch.empty(like.shape, dtype=self._loss_dtype, device=like.device)
        return self._buffers[key][: len(like)]


class Distillation:
    """The teachers of a training, and its loss.

    Args:
        teachers: models of this package; they are moved to the student's device and put into evaluation mode.
        alpha: weight of the teachers' term, in [0, 1].
        temperature: of that term.
    """

    def __init__(self, teachers: Sequence[GPT2HFForCausalLM], alpha: float, temperature: float):
        self.teachers = list(teachers)
        self.alpha, self.temperature = alpha, temperature
        self._heads: list[TeacherOutput] = []
        self._hidden_states: list[Tensor] = []
        self.reset()

    def reset(self) -> None:
        """Begin anew: nothing is counted, and the student may be another one."""
        self._heads, self._hidden_states = [], []
        self._cross_entropy: Tensor | float = 0.0  # since the last log, on this process
        self._num_tokens: Tensor | int = 0

    def place(self, device: torch.device) -> None:
        """Move the teachers to a device."""
        for teacher in self.teachers:
            teacher.to(device)

    @torch.no_grad()
    def read(self, inputs: Mapping[str, Any]) -> "Distillation":
        """Let the teachers compute a batch, up to their heads; it is what the model's `summed_loss` takes.

        Args:
            inputs: of the student's `forward`, on the device.
        """
        inputs = {name: value for name, value in inputs.items() if name not in _OF_THE_LOSS}
        self._hidden_states = [
            teacher.eval().transformer(**inputs, use_cache=False).last_hidden_state for teacher in self.teachers
        ]
        return self

    # A compiled model calls it between two graphs: its loop would be another graph for each length.
    @torch.compiler.disable
    def __call__(self, model: GPT2HFForCausalLM, hidden_states: Tensor, targets: Tensor) -> Tensor:
        """The summed loss of the batch that was read.

        Args:
            model: the student.
            hidden_states: `[B, T, C]`, its last ones.
            targets: int64 `[B, T]`, the token after each position, −100 where none is scored.
        """
        weight, unused = model.lm_head.weight, model.unused_tokens
        dtype = product_dtype(hidden_states, weight.device.type)
        if not self._heads:
            self._heads = [teacher_head(teacher, unused, dtype) for teacher in self.teachers]
        num_tokens = (targets != IGNORE_INDEX).sum()
        if unused is not None:
            weight, targets = unused.compact_head(weight), unused.compact_labels(targets)
        loss, cross_entropy = chunked_distillation(
            hidden_states,
            weight,
            targets,
            [head._replace(hidden_states=x) for head, x in zip(self._heads, self._hidden_states, strict=True)],
            alpha=self.alpha,
            temperature=self.temperature,
            num_padding_rows=model.config.n_vocab_padding if unused is None else 0,
            copies_of_last_row=1 if unused is None else len(unused.unused),
        )
        self._hidden_states = []
        self._cross_entropy = self._cross_entropy + cross_entropy.to(distributed.sum_dtype(cross_entropy.device))
        self._num_tokens = self._num_tokens + num_tokens
        return loss

    @torch.no_grad()
    def cost(self, model: GPT2HFForCausalLM, dtype: torch.dtype) -> tuple[int, float]:
        """What the teachers add to a training.

        Args:
            model: the student.
            dtype: of the products.

        Returns:
            Memory in bytes: weights in fp32, the copies of their heads that are multiplied with, and the logits of
            some positions. Operations for a token, without attention: 2 per parameter, the head included.
        """
        rows = _TEACHER_ROWS.get(model.device.type, _TEACHER_ROWS_ELSEWHERE)
        num_bytes, operations = 0, 0.0
        for teacher in self.teachers:
            head = teacher_head(teacher, model.unused_tokens, dtype).weight
            is_copy = head.data_ptr() != teacher.lm_head.weight.data_ptr()
            num_bytes += torch.float32.itemsize * sum(parameter.numel() for parameter in teacher.parameters())
            num_bytes += (head.numel() if is_copy else 0) * dtype.itemsize + rows * len(head) * dtype.itemsize
            operations += 2.0 * (teacher.num_body_parameters + head.numel())
        return num_bytes, operations

    # ---- the plain cross-entropy, for the log ----

    def drain(self) -> float:
        """The plain cross-entropy since the last call, in nats per token of all processes, which must all ask."""
        device = self.teachers[0].device
        sums = [torch.as_tensor(x, device=device) for x in (self._cross_entropy, self._num_tokens)]
        sums = torch.stack([x.to(distributed.sum_dtype(device)) for x in sums])
        self._cross_entropy, self._num_tokens = 0.0, 0
        loss, count = distributed.sum_over_processes(sums).tolist()
        return loss / count if count else math.nan

    @functools.cached_property
    def _fingerprints(self) -> list[str]:
        return [fingerprint(teacher) for teacher in self.teachers]

    def state(self) -> dict[str, Any]:
        """What is counted since the last log, on this process, and which the teachers are."""
        counted = {"cross_entropy": float(self._cross_entropy), "num_tokens": int(self._num_tokens)}
        return {**counted, "teachers": self._fingerprints}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave.

        Raises:
            UserError: if it is of other teachers; an earlier version did not write down which.
        """
        if state.get("teachers", self._fingerprints) != self._fingerprints:
            raise UserError(
                "resume_from_checkpoint: the teachers are not those that the checkpoint learned from; give the same "
                "models in the same order, or train a new model from its weights"
            )
        self._cross_entropy, self._num_tokens = state["cross_entropy"], int(state["num_tokens"])


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights: of their names, and of their numbers byte by byte."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def teacher_head(teacher: GPT2HFForCausalLM, unused: UnusedTokens | None, dtype: torch.dtype) -> TeacherOutput:
    """A teacher's head in the order of the student's; its hidden states are still to come.

    Args:
        teacher: on the student's device.
        unused: the tokens that the student ties. Where the teacher's rows for them are equal, as after a training with
            the same text and `--tie_unused_tokens`, one row stands for all, and the products are smaller.
        dtype: of the products.
    """
    weight, copies = teacher.lm_head.weight.detach()[: teacher.config.num_tokens], 1
    if unused is not None:
        of_unused = weight[unused.unused]
        if bool((of_unused == of_unused[0]).all()):
            weight, copies = weight[unused.rows], len(unused.unused)
        else:
            weight = torch.cat([weight[unused.rows[:-1]], of_unused])
    return TeacherOutput(weight.new_empty(0), aligned(weight.to(dtype)), len(weight), copies)


def check_teachers(model: nn.Module, teachers: Sequence[nn.Module]) -> None:
    """Refuse teachers that a student cannot learn from.

    Args:
        model: the student, without what was put around it.
        teachers: of it.

    Raises:
        UserError: if one of them is no GPT-2 of this package, has another vocabulary, or a head that is not plain.
    """
    for role, each in [("the model", model), *(("a teacher", teacher) for teacher in teachers)]:
        if not isinstance(each, GPT2HFForCausalLM):
            raise UserError(
                f"teachers: {role} is a {type(each).__name__}; the model and its teachers must be GPT2HFForCausalLM"
            )
        if type(each.lm_head) is not nn.Linear or each.lm_head.bias is not None:
            raise UserError(f"teachers: the head of {role} is adapted or exchanged; it must be the tied embedding")
    assert isinstance(model, GPT2HFForCausalLM)
    for teacher in teachers:
        assert isinstance(teacher, GPT2HFForCausalLM)
        if teacher is model:
            raise UserError("teachers: a model cannot be its own teacher; load it a second time")
        if teacher.config.num_tokens != model.config.num_tokens:
            raise UserError(
                f"teachers: a teacher has {teacher.config.num_tokens:,} tokens and the model "
                f"{model.config.num_tokens:,}; they need the same tokenizer"
            )
