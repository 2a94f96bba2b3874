"""A sampler and a schedule on a model's ladder, from what was typed; no weights are loaded for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celadon.supervisor import StartRefused

if TYPE_CHECKING:
    from pipelines.card import Defaults
    from pipelines.ladder import Ladder
    from pipelines.step_table import StepTable


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What cannot be done is said in one line, with exit status 2."""
    from celadon.__main__ import fail

    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has seen enough
    except (StartRefused, ValueError, OSError) as error:
        raise fail(str(error), 2) from error


@dataclass(frozen=True, slots=True)
class Pair:
    """A canonical pair with its table."""

    folder: Path
    sampler: str
    sampler_options: Mapping[str, Any]
    schedule: str
    schedule_options: Mapping[str, Any]
    steps: int  # those that are kept, of a part
    table: StepTable
    part: Mapping[str, float] = field(default_factory=dict)  # strength, or start and end, where not all steps are kept


@dataclass(frozen=True, slots=True)
class Pairs:
    """What can be asked of one model's ladder."""

    folder: Path
    ladder: Ladder
    defaults: Defaults

    @classmethod
    def of(cls, model: str) -> Pairs:
        """The model in a folder, of a hub id, or the one that comes along. Raises StartRefused."""
        from pipelines.card import Defaults
        from pipelines.ladder import Ladder
        from workers.settings import DEFAULT_MODEL

        folder = Path(model or DEFAULT_MODEL)
        if not folder.is_dir():
            from pipelines.checkpoint_error import CheckpointError
            from pipelines.sources import local
            from workers.settings import WorkerSettings

            try:
                folder, _ = local(model, WorkerSettings(redis_url="unix:///none").caches)
            except CheckpointError as error:
                raise StartRefused(str(error)) from error
        config, extra = folder / "scheduler" / "scheduler_config.json", folder / "celadon.json"
        if not config.exists():
            raise StartRefused(f"{folder} is no checkpoint in diffusers layout: it has no scheduler/scheduler_config.json")
        further = json.loads(extra.read_text()) if extra.exists() else {}
        trained = {name: further[name] for name in ("input_scale", "normalize") if name in further}
        return cls(folder, Ladder.from_config(json.loads(config.read_text()), **trained), Defaults(**further.get("defaults", {})))

    def pair(
        self,
        sampler: str,
        schedule: str,
        steps: int | None,
        sampler_options: Sequence[str],
        schedule_options: Sequence[str],
        **part: float,
    ) -> Pair:
        """By names of any dialect; what is empty takes the model's default. `part` as in `compile_table`. Raises ValueError."""
        from pipelines import names
        from pipelines.options import checked_options
        from pipelines.params import kept_steps
        from pipelines.sampler_list import samplers_of
        from pipelines.samplers import compile_table
        from pipelines.schedule_list import SCHEDULES

        options = options_of(sampler_options)
        samplers = samplers_of(self.ladder.space)
        try:
            choice = names.find(sampler or self.defaults.sampler, schedule or None, samplers, options)
            id = names.find_schedule(choice.schedule or self.defaults.schedule, SCHEDULES)
        except names.UnknownName as error:
            known_of_kind = samplers if error.kind == "sampler" else SCHEDULES
            close = names.nearest(error.kind, error.name, known_of_kind)
            meant = f"; did you mean {' or '.join(close)}?" if close else f"; there are {', '.join(sorted(known_of_kind))}"
            raise ValueError(str(error) if error.reason else f"{error}{meant}") from error
        of_sampler: Any = dict(choice.sampler_options)
        for kind, one, known in (("sampler", choice.sampler, samplers), ("schedule", id, SCHEDULES)):
            if one not in known:
                raise names.UnknownName(kind, one, names.needs(one))
        of_schedule = options_of(schedule_options)
        given = of_schedule.get("sigmas")
        count = steps or (len(given) - 1 if id == "custom" and isinstance(given, list) and len(given) > 1 else self.defaults.steps)
        most = min(info.most or len(self.ladder) - 2 for info in (samplers[choice.sampler], SCHEDULES[id]))
        if count > most:
            raise ValueError(f"{choice.sampler} on {id} takes at most {most} steps of this ladder, not {count}")
        table = compile_table(self.ladder, choice.sampler, id, count, of_sampler, of_schedule, **part)
        first, last = kept_steps(count, **part)
        return Pair(
            self.folder,
            choice.sampler,
            checked_options("sampler", choice.sampler, of_sampler, samplers[choice.sampler].options),
            id,
            checked_options("schedule", id, of_schedule, SCHEDULES[id].options),
            last - first,
            table,
            part if last - first < count else {},
        )


def ratio(alpha: float, sigma: float) -> float:
    """sigma/alpha, infinite where nothing of the picture is left."""
    return sigma / alpha if alpha > 0 else inf


def options_of(written: Sequence[str]) -> dict[str, Any]:
    """name=value each, a name once. Raises ValueError."""
    given = [typed(text) for text in written]
    if twice := sorted({name for i, (name, _) in enumerate(given) if name in dict(given[:i])}):
        raise ValueError(f"the option {twice[0]} is given twice")
    return dict(given)


def typed(text: str) -> tuple[str, Any]:
    """ "eta=0.5" -> ("eta", 0.5); what is no JSON is a word. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"an option is written name=value, not {text!r}")
    try:
        return name.strip(), json.loads(value)
    except json.JSONDecodeError:
        return name.strip(), value.strip()
