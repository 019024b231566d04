"""Scripted demonstrations of embedded tasks, imperfect on purpose.

The script reads the question and follows its chains, all of them one call a turn, by what the tools answer.
It makes mistakes that depend on what stands before it, so a policy that imitates it makes them too, also when
it takes the likeliest token; noise without a pattern would be averaged away. Each is made in most of its
cases and not in all: what is right keeps some probability, from which reward can raise it.

========= ======================================== =================================================
mistake   where                                    what
========= ======================================== =================================================
sibling   the question has one of `CONFUSED`       the sibling's tool is called
half      several chains, "Give …"                 the last chain is left out
repeat    after the first turn, "Find …"           the turn repeats the call that the last one began with
stop      a chain of three or more, after two      what was found so far is the answer
ignore    an error says how to correct the call    the chain is given up
========= ======================================== =================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...tasks.embedded.world import RELATIONS, Draw
from ...types import Task, ToolCall
from .calls import MAX_TURNS, Chance, Message, call_text, run_embedded_tool
from .dialogues import dialogue

# fmt: off
CONFUSED = frozenset((
    "leader", "deputy", "home", "boss", "creator", "sponsor", "backer", "employer", "headquarters",
    "factory", "skipper", "owner", "dockyard", "shuttle", "breadth", "draught",
))
# fmt: on
"""Words of questions whose sibling is called."""
RATES: Mapping[str, float] = {"sibling": 0.75, "half": 0.65, "repeat": 0.7, "stop": 0.65, "ignore": 0.7}
"""How often each mistake is made where it can be."""

_RELATION_OF = {word: relation for relation in RELATIONS for word in (relation.name, relation.synonym)}
_UNIT = re.compile(r"unit must be (\w+)")
_NAME = re.compile(r"(?:use|did you mean) (\w+)")


def demonstration(task: Task, seed: int = 0, chance: Chance | None = None) -> list[Message]:
    """One scripted rollout of an embedded task.

    Parameters
    ----------
    task : Task
        Of :func:`matchtir.tasks.embedded.embedded_tasks`.
    seed : int
        The same seed makes the same mistakes in the same task.
    chance : callable, optional
        Decides in the seed's stead. ``lambda p: False`` makes no mistake; ``lambda p: p > 0.5`` makes all
        that it can, which is what a policy does that has learnt the script and takes the likeliest token.

    Returns
    -------
    list of dict
        The conversation in OpenAI's form, prompt included. Calls stand in the text of assistant turns as
        ``<tool_call>…</tool_call>``; tool messages hold what the tools really answer. It ends with an answer.
        That of a calendar task has all user turns, with an answer each.
    """
    chance = chance or Draw(f"demonstration/{seed}/{task.id}").chance
    if task.environment is not None:
        return dialogue(task, chance)
    messages = [dict(message) for message in task.messages]
    script = _Script(task, chance)
    for turn in range(MAX_TURNS - 1):
        calls = script.calls(turn)
        if not calls:
            break
        text = "".join(call_text(call) for call in calls)
        messages.append({"role": "assistant", "content": text})
        results = [run_embedded_tool(script.tools[call.name], call.arguments) for call in calls]
        messages += [{"role": "tool", "content": result} for result in results]
        script.see(results)
    messages.append({"role": "assistant", "content": f"<answer>{script.answer}</answer>"})
    return messages


@dataclass(slots=True)
class _Chain:
    """One part of the question: relations to follow, innermost first, and how far the script is."""

    words: list[str]
    start: str
    reached: str
    unit: str | None = None
    hop: int = 0
    stopped: bool = False

    @property
    def open(self) -> bool:
        """Whether a call is left to make."""
        return not self.stopped and self.hop < len(self.words)


class _Script:
    """The state of a demonstration between its turns."""

    def __init__(self, task: Task, chance: Chance) -> None:
        self.tools = {tool.name: tool for tool in task.tools}
        question = task.messages[-1]["content"]
        self._hasty = question.startswith("Find ")
        self._chance = chance
        self._chains = [_chain(part) for part in question[len("Give the ") : -1].split(" and the ")]
        if len(self._chains) > 1 and not self._hasty and self._mistake("half"):
            self._chains.pop()
        self._asked: list[_Chain] = []
        self._last: list[ToolCall] = []

    @property
    def answer(self) -> str:
        """What every chain has reached."""
        return ", ".join(chain.reached for chain in self._chains)

    def calls(self, turn: int) -> list[ToolCall]:
        """The calls of the next turn; none if it answers."""
        for chain in self._chains:
            if chain.open and chain.hop == 2 and self._mistake("stop"):
                chain.stopped = True
        self._asked = [chain for chain in self._chains if chain.open]
        calls = [self._call(chain) for chain in self._asked]
        if calls and turn and self._hasty and self._mistake("repeat"):
            calls.append(self._last[0])
        self._last = calls
        return calls

    def see(self, results: list[str]) -> None:
        """Take what the tools answered to the last calls; a repeated one, at the end, teaches nothing."""
        for chain, result in zip(self._asked, results, strict=False):
            if not result.startswith("{"):
                chain.reached = result
                chain.hop += 1
            elif name := _NAME.search(result):
                chain.stopped = self._mistake("ignore")
                chain.reached = name[1]
            elif unit := _UNIT.search(result):
                chain.stopped = self._mistake("ignore")
                chain.unit = unit[1]

    def _call(self, chain: _Chain) -> ToolCall:
        """The next call of a chain, right or wrong."""
        word = chain.words[chain.hop]
        relation = _RELATION_OF[word]
        name = relation.name
        if word in CONFUSED and relation.sibling in self.tools and self._mistake("sibling"):
            name = relation.sibling
        arguments = {relation.domain: chain.reached}
        if chain.unit is not None:
            arguments["unit"] = chain.unit
        return ToolCall(name, arguments)

    def _mistake(self, name: str) -> bool:
        """Whether this mistake is made now."""
        return self._chance(RATES[name])


def _chain(part: str) -> _Chain:
    """A part of a question, ``length of the ferry of Quomot`` say."""
    relations, _, start = part.rpartition(" of ")
    return _Chain(relations.split(" of the ")[::-1], start, start)
