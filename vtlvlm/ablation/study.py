"""Runs grids in a work folder from the first missing item to the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vtlvlm.ablation.cluster import hand_over
from vtlvlm.ablation.cost import Estimate, cost_table, keep_duration
from vtlvlm.ablation.grid import Grid
from vtlvlm.ablation.items import TRIALS, Item, missing
from vtlvlm.ablation.plan import Planner
from vtlvlm.ablation.planned import Machine, Plan, Selection
from vtlvlm.ablation.runner import execute, settle
from vtlvlm.ablation.settings import Resolver
from vtlvlm.ablation.state import state_file, write_state
from vtlvlm.errors import UsageError
from vtlvlm.report.grid_sections import grid_section
from vtlvlm.report.grids import open_grid
from vtlvlm.report.scores import collect
from vtlvlm.report.tables import as_text, duration_text
from vtlvlm.slurm.site import Site
from vtlvlm.system.locks import FileLock, Taken


@contextmanager
def alone(work: Path) -> Iterator[None]:
    """Lock a work folder.

    Raises:
        UsageError: Another process works in it, or it is a file.
    """
    if work.exists() and not work.is_dir():
        raise UsageError(f"--work {work}: a file, not a folder; name another")
    work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / ".lock-ablate")
    except Taken as error:
        who = error.owner or "this process"
        raise UsageError(f"{work}: another `vtlvlm ablate` works there ({who}); wait for it, stop it, or name another --work") from error
    try:
        yield
    finally:
        lock.release()


class Study:
    """Grids that share a work folder. Everything is checked before anything runs.

    Args:
        grids: The grids.
        machine: The work folder and the places of this machine.
        only: The part to run.

    Raises:
        UsageError: A grid cannot be planned, or the selection names an arm that no grid has.
        DataError: A run folder is damaged.
    """

    def __init__(self, grids: Sequence[Grid], machine: Machine, only: Selection | None = None) -> None:
        self.grids, self.work, self.only = grids, machine.work, only or Selection()
        self._require_selection()
        resolve = Resolver(machine.work / "resolved.json" if machine.work.is_dir() else None)
        self.planners = {grid.name: Planner(grid, machine, resolve) for grid in grids}
        resolve.save()
        self.failed: dict[str, str] = {}

    def _require_selection(self) -> None:
        arms = [arm for grid in self.grids for arm in grid.arms]
        if strange := sorted((self.only.arms or frozenset()) - {arm.name for arm in arms}):
            raise UsageError(f"--arms {strange[0]}: no such arm; there are {', '.join(dict.fromkeys(arm.name for arm in arms))}")

    def plans(self, dry: bool = False) -> dict[str, Plan]:
        """The plan of each grid, as far as learning rates are chosen.

        Args:
            dry: Score no trial that ended elsewhere while another ``ablate`` works in the folder, which scores it itself.
        """
        if not dry:
            self._settle()
        elif self.work.is_dir():
            with suppress(UsageError), alone(self.work):  # a taken folder is no error of a dry run
                self._settle()
        return {name: planner.plan() for name, planner in self.planners.items()}

    def _settle(self) -> None:
        for planner in self.planners.values():
            for item in planner.plan().items.values():
                if item.kind in TRIALS:
                    settle(item)

    def todo(self, plans: dict[str, Plan]) -> list[Item]:
        """The items that are neither done nor failed, each after those that it needs."""
        items = {name: item for plan in plans.values() for name, item in plan.items.items()}
        wanted = dict.fromkeys(name for plan in plans.values() for name in plan.wanted(self.only))
        left = []
        for item in missing(items, [name for name in wanted if name not in self.failed]):
            if reason := next((self.failed[name] for name in (item.name, *item.needs) if name in self.failed), None):
                self.failed[item.name] = reason
            else:
                left.append(item)
        return left

    def run(self, jobs: int) -> int:
        """Run what is missing, print the tables and the failures. Returns 1 if an item failed."""
        plans = self.plans()
        while left := self.todo(plans):
            self._write(plans)
            self._execute(left, plans, jobs)
            plans = self.plans()
        self._write(plans)
        return self._tables(plans)

    def _execute(self, left: Sequence[Item], plans: dict[str, Plan], jobs: int) -> None:
        """Run items, and keep the state of each grid that has one that ended."""

        def on_end(item: Item, error: str | None, seconds: float) -> None:
            if error is None:
                keep_duration(self.work, item.kind, seconds)
            else:
                self.failed[item.name] = error
            self._write({name: plan for name, plan in plans.items() if item.name in plan.items})

        self.failed |= execute(left, jobs, on_end)

    def show(self) -> int:
        """List what would run, and its cost."""
        plans = self.plans(dry=True)
        left = self.todo(plans)
        estimate = Estimate(self.work, [item for plan in plans.values() for item in plan.items.values()])
        for item in left:
            seconds = estimate.seconds(item)
            print(f"{item.title}  ({item.name}{'' if seconds is None else f', about {duration_text(seconds)}'})")
        if not left:
            print("nothing to run")
            return 0
        print(f"\n{cost_table(left, estimate)}")
        if any(plan.trials for plan in plans.values()):
            print("more commands follow when the learning rates are chosen")
        return 0

    def submit(self, site: Site, dry: bool) -> int:
        """Hand the missing items to Slurm, and print a line for each job. The same call goes on when rates can be chosen.

        Args:
            site: The cluster.
            dry: Print the command lines for Slurm instead.
        """
        plans = self.plans(dry)
        left = self.todo(plans)
        for outcome in hand_over(left, self.work, site, dry):
            print(f"{outcome.name:12s} {outcome.number or '':>8s}  {outcome.text}".rstrip(), flush=True)
        if any(plan.trials for plan in plans.values()):
            print("give the same command again when these have ended: the learning rates are chosen then")
        if dry:
            return 0
        self._write(plans)
        return 0 if left else self._tables(plans)

    def _tables(self, plans: dict[str, Plan]) -> int:
        """Print the table of each grid, and the failures. Returns 1 if an item failed."""
        for grid in self.grids:
            section = grid_section(collect(open_grid(state_file(self.work, grid.name), self.work)), pictures=False)
            tables = [f"{table.caption}\n{as_text(table)}".strip() for table in section.tables]
            print("\n\n".join(["", section.title, section.text, *tables]), flush=True)
        return self._told(plans)

    def _write(self, plans: dict[str, Plan]) -> None:
        for grid in self.grids:
            if grid.name in plans:
                write_state(self.work, grid, plans[grid.name], self.failed)

    def _told(self, plans: dict[str, Plan]) -> int:
        """Print a line for each item that failed by itself."""
        items = {name: item for plan in plans.values() for name, item in plan.items.items()}
        lines = {reason: items[name] for name, reason in reversed(self.failed.items()) if name in items}
        for reason, item in reversed(lines.items()):
            print(f"failed: {item.title}: {reason} ({item.log})", flush=True)
        hopeless = dict.fromkeys(reason for plan in plans.values() for reason in plan.hopeless.values())
        for reason in hopeless:
            print(f"failed: {reason}", flush=True)
        return int(bool(self.failed or hopeless))
