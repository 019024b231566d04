"""The calendar that the stateful tasks act on. A task carries this file as its source: it imports nothing."""

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri")
HOURS = ("11", "12", "13", "14", "15", "16", "17", "18")


class Calendar:
    """The appointments of one week: a person has one at most, and an hour of a day has one at most.

    Parameters
    ----------
    people : list of str
        Everybody who is known.
    slots : dict of str to list
        Person to day and hour of the appointment.
    former : dict of str to str
        Old name of a person to the name.
    expected : list of dict
        For each user turn the `slots` that it should leave, and its `answer`; None where it asks nothing.
    """

    def __init__(
        self,
        people: list[str],
        slots: dict[str, list[str]],
        former: dict[str, str],
        expected: list[dict[str, object]],
    ) -> None:
        self._people, self._former, self._expected = people, former, expected
        self._slots = {person: list(slot) for person, slot in slots.items()}
        self._judged = 0

    def find(self, person: str) -> object:
        """When a person has the appointment."""
        return self._wrong(person, has=True) or " at ".join(self._slots[person])

    def earliest(self, day: str) -> object:
        """The first free hour of a day."""
        return self._wrong(day=day) or self._free(day, HOURS) or {"error": "day is full"}

    def latest(self, day: str) -> object:
        """The last free hour of a day."""
        return self._wrong(day=day) or self._free(day, HOURS[::-1]) or {"error": "day is full"}

    def opener(self, day: str) -> object:
        """Who has the first appointment of a day."""
        return self._wrong(day=day) or self._taken(day, HOURS) or {"error": "day is empty"}

    def closer(self, day: str) -> object:
        """Who has the last appointment of a day."""
        return self._wrong(day=day) or self._taken(day, HOURS[::-1]) or {"error": "day is empty"}

    def book(self, person: str, day: str, hour: str) -> object:
        """Give a person without an appointment one."""
        return self._wrong(person, day, hour, has=False) or self._put(person, day, hour)

    def move(self, person: str, day: str, hour: str) -> object:
        """Change when a person has the appointment."""
        return self._wrong(person, day, hour, has=True) or self._put(person, day, hour)

    def cancel(self, person: str) -> object:
        """Take a person's appointment out."""
        wrong = self._wrong(person, has=True)
        if not wrong:
            del self._slots[person]
        return wrong or "done"

    def judge(self, answer: object) -> float:
        """1 if the appointments are those that this user turn should leave, and the answer is right; else 0.

        It is called once a user turn. How the appointments came to be so does not count, nor what is said
        where nothing was asked.
        """
        self._judged += 1
        if self._judged > len(self._expected):
            return 0.0
        wanted = self._expected[self._judged - 1]
        said = answer.strip() if isinstance(answer, str) else None
        return float(self._slots == wanted["slots"] and wanted["answer"] in (None, said))

    def _wrong(
        self, person: str | None = None, day: str | None = None, hour: str | None = None, has: bool = False
    ) -> object:
        """The error of arguments that do not fit; None if they do. `has`: there must be an appointment."""
        if person in self._former:
            return {"error": "old name; use " + self._former[person]}
        if person is not None and person not in self._people:
            near = [name for name in self._people if name[:3] == person[:3]]
            return {"error": "unknown person" + ("; did you mean " + near[0] + "?" if near else "")}
        if day is not None and day not in DAYS:
            return {"error": "unknown day"}
        if hour is not None and hour not in HOURS:
            return {"error": "unknown hour"}
        if person is not None and has and person not in self._slots:
            return {"error": "not booked"}
        if person is not None and not has and person in self._slots:
            return {"error": "booked; use move"}
        return None

    def _put(self, person: str, day: str, hour: str) -> object:
        """Place an appointment; the error of an hour that somebody else has says which one is free."""
        if any(slot == [day, hour] for name, slot in self._slots.items() if name != person):
            later = self._free(day, HOURS[HOURS.index(hour) :]) or self._free(day, HOURS)
            return {"error": "occupied; use " + later if later else "day is full"}
        self._slots[person] = [day, hour]
        return "done"

    def _free(self, day: str, hours: tuple[str, ...]) -> str | None:
        """The first of the hours that nobody has on that day."""
        return next((hour for hour in hours if [day, hour] not in self._slots.values()), None)

    def _taken(self, day: str, hours: tuple[str, ...]) -> str | None:
        """Who has the first of the hours that somebody has on that day."""
        people = {slot[1]: person for person, slot in self._slots.items() if slot[0] == day}
        return next((people[hour] for hour in hours if hour in people), None)
