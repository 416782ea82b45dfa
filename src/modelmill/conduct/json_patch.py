"""Apply a JSON Patch (RFC 6902: add, replace, remove) to a document, without changing it.

Pure; knows nothing about what the document is.
"""

from collections.abc import Sequence

from pydantic import JsonValue

from modelmill.spec.cluster import PatchOperation
from modelmill.spec.errors import Problem, SpecError


def patched(document: JsonValue, operations: Sequence[PatchOperation], source: str) -> JsonValue:
    """Apply the operations one after the other.

    Args:
        document: left as it is.
        operations: paths are JSON Pointers; `-` is the place after a list's last item.
        source: where the operations stand, for messages.

    Raises:
        SpecError: a path leads nowhere.
    """
    for index, operation in enumerate(operations):
        keys = [
            part.replace("~1", "/").replace("~0", "~") for part in operation.path.split("/")[1:]
        ]
        try:
            document = _applied(document, keys, operation)
        except (KeyError, IndexError, ValueError):
            problem = Problem(f"[{index}].path", f"{operation.path} is not in the Job")
            raise SpecError(source, [problem]) from None
    return document


def _applied(here: JsonValue, keys: Sequence[str], operation: PatchOperation) -> JsonValue:
    first, rest = keys[0], keys[1:]
    if isinstance(here, dict):
        if rest:
            return {**here, first: _applied(here[first], rest, operation)}
        if operation.op != "add" and first not in here:
            raise KeyError(first)
        kept = {key: value for key, value in here.items() if key != first}
        return kept if operation.op == "remove" else {**here, first: operation.value}
    if isinstance(here, list):
        return _applied_to_list(here, keys, operation)
    raise KeyError(first)


def _applied_to_list(
    here: list[JsonValue], keys: Sequence[str], operation: PatchOperation
) -> JsonValue:
    first, rest = keys[0], keys[1:]
    is_insert = operation.op == "add" and not rest
    index = len(here) if first == "-" and is_insert else int(first)
    if not 0 <= index < len(here) + is_insert:
        raise IndexError(index)
    if rest:
        return [*here[:index], _applied(here[index], rest, operation), *here[index + 1 :]]
    tail = here[index:] if operation.op == "add" else here[index + 1 :]
    return [*here[:index], *([] if operation.op == "remove" else [operation.value]), *tail]
