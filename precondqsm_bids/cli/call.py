"""One call of the app: what travels from the command line to the last message."""

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from precondqsm_bids.cli.progress import new_log_name
from precondqsm_bids.config import Settings

if TYPE_CHECKING:
    from precondqsm_bids.inputs.run import Problem, Run


@dataclass(frozen=True)
class Call:
    """One call of the app.

    Attributes
    ----------
    settings : Settings
        The command line, parsed.
    command : str
        The command line itself.
    environment : mapping
        The environment before it was repaired for this process; that of jobs.
    log_name : str
        Name of the folders of the log and of the crash files.
    started : float
        Time of its start, seconds since the epoch.
    """

    settings: Settings
    command: str
    environment: Mapping[str, str]
    log_name: str = field(default_factory=new_log_name)
    started: float = field(default_factory=time.time)

    @property
    def argv(self) -> list[str]:
        """The command line without the name of the program."""
        return shlex.split(self.command)[1:]

    @property
    def log_dir(self) -> Path:
        """Folder of the log."""
        return self.settings.output_dir / 'logs' / self.log_name


class Found(NamedTuple):
    """The runs of a dataset, and what is wrong with these or others."""

    runs: list['Run']
    problems: list['Problem']

    @property
    def fatal(self) -> list['Problem']:
        """The problems that leave no run."""
        return [problem for problem in self.problems if problem.fatal]

    @property
    def subjects(self) -> list[str]:
        """Labels of all participants, those whose files cannot be used among them."""
        return sorted({run.subject for run in self.runs} | {p.subject for p in self.fatal})

    def of(self, subject: str) -> 'Found':
        """What was found of one participant."""
        return Found(
            [run for run in self.runs if run.subject == subject],
            [problem for problem in self.problems if problem.subject == subject],
        )
