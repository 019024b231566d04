"""Tasks from a seed: chains of relations, the question that names them, and the calls that solve it."""

from __future__ import annotations

from typing import NamedTuple

from ...errors import ConfigError
from ...types import Task, Tool, ToolCall
from .calendar import calendar_task
from .config import CALENDAR, KINDS, MOST_BRANCHES, EmbeddedConfig
from .tools import UNITS, make_tool
from .world import BY_NAME, NUMBER, RELATIONS, SPLITS, TYPES, Draw, Facts, Names, Relation, Value, add_facts


class _Chain(NamedTuple):
    """Relations followed from a start: ``values[k]`` is relation k of ``values[k - 1]``, or of the start."""

    start: str
    relations: list[Relation]
    values: list[Value]

    def argument(self, depth: int) -> str:
        """The entity that relation `depth` is asked of."""
        return str(self.values[depth - 1]) if depth else self.start


def embedded_tasks(config: EmbeddedConfig | None = None, split: str = "train") -> list[Task]:
    """Make the embedded task set.

    A task asks for one or several entities or numbers, each at the end of a chain of relations. The values
    that the gold calls return are returned by no other call, so an answer cannot be had with fewer calls.

    The kinds differ in their chains of calls:

    - "single_hop": one chain of one call
    - "parallel_single_hop": two or three independent chains of one call each
    - "multi_hop": one chain of ``hops[0]`` to ``hops[1]`` calls
    - "parallel_multi_hop": two chains of ``hops[0]`` to ``hops[1]`` calls each, together at most
      ``max_turns - 1``

    Those of the kind "calendar" have a state and one to three user turns, see
    :mod:`matchtir.tasks.embedded.calendar`.

    Parameters
    ----------
    config : EmbeddedConfig, optional
        Default: ``EmbeddedConfig()``.
    split : {"train", "test"}
        The two share no name, whatever their seeds.

    Returns
    -------
    list of Task
        ``gold_calls`` are ordered by depth: those of equal depth can be made in one turn. Each has the tool's
        answer as ``result``. ``gold_answer`` lists the chains' last values in the order asked, joined by
        ``", "``. ``sub_answers`` has one answer a gold call; a calendar has none. A failed first attempt is
        in neither.

    Raises
    ------
    ConfigError
        If `split` is unknown.

    Examples
    --------
    >>> task = embedded_tasks(EmbeddedConfig(seed=3, mix={"multi_hop": 1.0}))[0]
    >>> task.messages[0]["content"]
    'Give the workplace of the deputy of the factory of Holwic.'
    >>> for call in task.gold_calls:
    ...     print(call.name, call.arguments, call.result)
    factory {'firm': 'Holwic'} Merpax
    deputy {'town': 'Merpax'} Ariony
    employer {'person': 'Ariony'} Wenven
    >>> task.gold_answer
    'Wenven'
    """
    config = config or EmbeddedConfig()
    if split not in SPLITS:
        raise ConfigError(f"split is {split!r}; expected {' or '.join(SPLITS)}")
    size = config.train_size if split == "train" else config.test_size
    if config.mix == CALENDAR:
        return [calendar_task(config, split, index) for index in range(size)]
    weights = config.weights
    counts = dict.fromkeys(KINDS, 0)
    tasks = []
    for index in range(size):
        # The kind that lags furthest behind its share, so that every prefix has the mix.
        kind = max(KINDS, key=lambda kind: weights[kind] * (index + 1) - counts[kind])
        counts[kind] += 1
        tasks.append(_task(config, split, index, kind))
    return tasks


def _task(config: EmbeddedConfig, split: str, index: int, kind: str) -> Task:
    """One task; its draws depend on seed, split and index alone."""
    draw = Draw(f"{config.seed}/{split}/{index}")
    names = Names(draw, split)
    fails = draw.chance(config.error_rate)
    chains = [_chain(draw, names, length) for length in _lengths(draw, config, kind, fails)]
    asked = [chain.start for chain in chains]
    unit, old_names = None, {}
    if fails:
        numeric = [chain for chain in chains if chain.relations[-1].range == NUMBER]
        # Two calls that need a unit would fail twice.
        if len(numeric) == 1 and draw.chance(0.5):
            unit = draw.choice(UNITS)
        else:
            renamed = draw.below(len(chains))
            asked[renamed] = names.new(chains[renamed].relations[0].domain)
            old_names = {asked[renamed]: chains[renamed].start}
    calls = _gold_calls(chains, unit)
    sub_answers: dict[str, tuple[str, ...]] = {}
    for call in calls:
        sub_answers[call.name] = (*sub_answers.get(call.name, ()), str(call.result))
    return Task(
        id=f"{split}-{kind}-{index:04d}",
        messages=({"role": "user", "content": _question(draw, chains, asked)},),
        tools=_tools(draw, names, chains, config.tools, unit, old_names),
        gold_calls=calls,
        gold_answer=", ".join(str(chain.values[-1]) for chain in chains),
        sub_answers=sub_answers,
        kind=kind,
    )


def _lengths(draw: Draw, config: EmbeddedConfig, kind: str, fails: bool) -> list[int]:
    """Calls of each chain; together they leave turns for the answer and for a failed attempt."""
    calls = config.max_turns - 1 - fails
    least, most = config.hops
    if kind == "single_hop":
        return [1]
    if kind == "parallel_single_hop":
        return [1] * draw.between(2, min(MOST_BRANCHES, calls))
    if kind == "multi_hop":
        return [draw.between(least, most)]
    first = draw.between(least, min(most, calls - least))
    return draw.shuffled([first, draw.between(least, min(most, calls - first))])


def _chain(draw: Draw, names: Names, length: int) -> _Chain:
    """A random walk along relations, each to a new entity; only the last may lead to a number."""
    kind = draw.choice(TYPES)
    chain = _Chain(names.new(kind), [], [])
    for depth in range(length):
        last = depth == length - 1
        relation = draw.choice([x for x in RELATIONS if x.domain == kind and (last or x.range != NUMBER)])
        kind = relation.range
        chain.relations.append(relation)
        chain.values.append(names.number() if kind == NUMBER else names.new(kind))
    return chain


def _question(draw: Draw, chains: list[_Chain], asked: list[str]) -> str:
    """The question, each relation by its name or its synonym, each chain from its end to its start."""
    parts = []
    for chain, start in zip(chains, asked, strict=True):
        words = [draw.choice((relation.name, relation.synonym)) for relation in reversed(chain.relations)]
        parts.append(f"{' of the '.join(words)} of {start}")
    return f"{draw.choice(('Give', 'Find'))} the {' and the '.join(parts)}."


def _gold_calls(chains: list[_Chain], unit: str | None) -> tuple[ToolCall, ...]:
    """The calls of all chains, by depth."""
    calls = []
    for depth in range(max(len(chain.relations) for chain in chains)):
        for chain in chains:
            if depth < len(chain.relations):
                relation = chain.relations[depth]
                arguments = {relation.domain: chain.argument(depth)}
                if unit and relation.range == NUMBER:
                    arguments["unit"] = unit
                calls.append(ToolCall(relation.name, arguments, result=str(chain.values[depth])))
    return tuple(calls)


def _tools(
    draw: Draw,
    names: Names,
    chains: list[_Chain],
    count: int,
    unit: str | None,
    old_names: dict[str, str],
) -> tuple[Tool, ...]:
    """The tools of the gold calls and distractors, in random order; `old_names` maps old to new."""
    gold: Facts = {}
    known: dict[str, list[str]] = {kind: [] for kind in TYPES}
    for chain in chains:
        known[chain.relations[0].domain].append(chain.start)
        for depth, (relation, value) in enumerate(zip(chain.relations, chain.values, strict=True)):
            gold.setdefault(relation.name, {})[chain.argument(depth)] = value
            if relation.range != NUMBER:
                known[relation.range].append(str(value))
    siblings = [BY_NAME[name].sibling for name in gold]
    unrelated = [relation.name for relation in RELATIONS]
    offered = list(dict.fromkeys([*gold, *draw.shuffled(siblings), *draw.shuffled(unrelated)]))[:count]
    facts = add_facts(draw, names, gold, known, offered)
    tools = []
    for name in draw.shuffled(offered):
        relation = BY_NAME[name]
        knows = {old: new for old, new in old_names.items() if new in facts[name]}
        needs = unit if relation.range == NUMBER else None
        tools.append(make_tool(relation, facts[name], knows, needs))
    return tuple(tools)
