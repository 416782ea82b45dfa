"""Find the metric plug-ins that a run asks for among the packages of this Python.

Imports what the run names and nothing else: a plug-in is code, chosen by whoever made the
environment or the image.
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from pydantic import BaseModel, JsonValue, ValidationError

from modelmill.evaluate.plugin import PluginMetric, Plugins, TextMetric
from modelmill.spec.errors import Problem, SpecError
from modelmill.spec.infer import MetricsSpec

GROUP: Final = "modelmill.metrics"
_HERE: Final = "where the report is made"


def load_plugins(spec: MetricsSpec) -> Plugins:
    """Load every plug-in a spec names, or say why it cannot be used."""
    return {name: _loaded(name, settings) for name, settings in sorted(spec.plugins.items())}


def check_plugins(spec: MetricsSpec) -> None:
    """Make sure that every plug-in a spec names can be used by this Python.

    Raises:
        SpecError: with everything that is wrong.
    """
    problems = [
        problem
        for each in load_plugins(spec).values()
        if isinstance(each, SpecError)
        for problem in each.problems
    ]
    if problems:
        raise SpecError("metric plug-ins", problems)


def _loaded(name: str, settings: Mapping[str, JsonValue]) -> PluginMetric | SpecError:
    key = f"infer.metrics.plugins.{name}"
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    packages = [_package(point) for point in found]
    if not found:
        installed = ", ".join(sorted({point.name for point in entry_points(group=GROUP)}))
        problem = Problem(key, f"not installed {_HERE}", suggestion=f"there: {installed or 'none'}")
        return SpecError("metric plug-ins", [problem])
    if len(found) > 1:
        problem = Problem(key, f"brought by more than one package: {', '.join(sorted(packages))}")
        return SpecError("metric plug-ins", [problem])
    try:
        declared = found[0].load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code, whatever it does
        # Its words, unlike those of an error while scoring, cannot quote the data.
        reason = f"cannot be imported from {packages[0]} ({type(error).__name__}: {error})"
        return SpecError("metric plug-ins", [Problem(key, reason)])
    if not isinstance(declared, TextMetric):
        reason = f"{found[0].value} of {packages[0]} is not a modelmill.evaluate.plugin.TextMetric"
        return SpecError("metric plug-ins", [Problem(key, reason)])
    try:
        return PluginMetric(name, declared, _checked(declared, settings), packages[0])
    except ValidationError as error:
        return SpecError("metric plug-ins", _refusals(key, error))
    except Exception as error:  # noqa: BLE001 - foreign code
        reason = f"its settings could not be checked ({type(error).__name__}: {error})"
        return SpecError("metric plug-ins", [Problem(key, reason)])


def _checked(
    declared: TextMetric, settings: Mapping[str, JsonValue]
) -> BaseModel | Mapping[str, JsonValue]:
    return settings if declared.settings is None else declared.settings.model_validate(settings)


def _refusals(key: str, error: ValidationError) -> list[Problem]:
    return [
        Problem(".".join([key, *map(str, each["loc"])]), each["msg"])
        for each in error.errors(include_url=False, include_context=False)
    ]


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"
