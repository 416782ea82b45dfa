"""How likely a model finds the references: a direct forward, no generation."""

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from modelmill.models.prompt import EncodedRow
from modelmill.spec.batching import LOGITS_BYTES
from modelmill.stages.infer.batches import pad_right
from modelmill.stages.infer.prefix import NO_PREFIX, Prefix


def reference_nll(
    model: PreTrainedModel, rows: list[EncodedRow], pad: int, prefix: Prefix = NO_PREFIX
) -> list[float]:
    """Compute the mean negative log-likelihood of every row's completion and its end.

    Args:
        model: in evaluation mode.
        rows: prompt, completion and EOS.
        pad: fills up behind the rows, masked.
        prefix: what all prompts begin with.

    Returns:
        Nats per token, in the order of the rows.
    """
    results: list[float] = []
    for some in _memory_bound(rows, model.config.get_text_config().vocab_size):
        results += _nll(model, some, pad, prefix)
    return results


def _nll(model: PreTrainedModel, rows: list[EncodedRow], pad: int, prefix: Prefix) -> list[float]:
    shared = len(prefix.ids)
    ids, mask = pad_right([row.input_ids[shared:] for row in rows], pad)
    device = model.device
    # Logits are needed only where some row's completion is predicted.
    first = min(row.prompt_length for row in rows) - 1
    last = shared + len(ids[0]) - 1
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor([[1] * shared + row for row in mask], device=device),
            logits_to_keep=torch.arange(first - shared, last - shared, device=device),
            past_key_values=prefix.cache(len(rows)),
            use_cache=shared > 0,
        ).logits.float()
    results = []
    for row, scores in zip(rows, logits, strict=True):
        targets = torch.tensor(row.input_ids[row.prompt_length :], device=device)
        start = row.prompt_length - 1 - first
        loss = functional.cross_entropy(scores[start : start + len(targets)], targets)
        results.append(loss.item())
    return results


def _memory_bound(rows: list[EncodedRow], vocabulary: int) -> list[list[EncodedRow]]:
    groups: list[list[EncodedRow]] = []
    for row in rows:
        bigger = [*groups[-1], row] if groups else [row]
        first = min(each.prompt_length for each in bigger)
        width = max(len(each.input_ids) for each in bigger) - first
        if groups and len(bigger) * width * vocabulary * 4 <= LOGITS_BYTES:
            groups[-1] = bigger
        else:
            groups.append([row])
    return groups
